"""A package outside this one uses out-of-band messages inside the daemon (R21)."""

from __future__ import annotations

from mesh import NodeProcess, client_text, free_port, run_refused, server_text, wait_until

PLUGIN = '''
"""Node 7 greets node 1, which greets back; each writes down what it heard."""

import os


def start(messages):
    def heard(peer, payload):
        with open(os.environ["GREETINGS"], "a") as file:
            file.write(f"{messages.node_id} heard {peer}: {payload.decode()}\\n")
        if messages.node_id == 1:
            messages.send_message(peer, "greeter.hello", b"welcome")

    messages.on_message("greeter.hello", heard)
    if messages.node_id == 7:
        messages.send_message(1, "greeter.hello", b"hello", confirmed=True)


def broken(messages):
    raise RuntimeError("on purpose")
'''


def test_a_plugin_from_outside_sends_and_hears_and_one_that_fails_hurts_nobody(tmp_path):
    package = tmp_path / "site"
    info = package / "greeter-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "greeter.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n")
    points = "[uservpn.plugins]\ngreeter = greeter:start\nbroken = greeter:broken\n"
    (info / "entry_points.txt").write_text(points)
    greetings = tmp_path / "greetings"
    env = {"PYTHONPATH": str(package), "GREETINGS": str(greetings)}
    port = free_port()
    nodes = []
    try:
        for number, text in (
            ("1", server_text(tmp_path / "1", port)),
            ("7", client_text(tmp_path / "7", free_port(), {1: port})),
        ):
            text = text.replace("[node]", '[node]\nplugins = ["broken", "greeter"]')
            nodes.append(NodeProcess(tmp_path / number, text, env=env))
        lines = "1 heard 7: hello\n7 heard 1: welcome\n"
        wait_until(lambda: greetings.exists() and greetings.read_text() == lines)
    finally:
        for node in reversed(nodes):
            assert node.stop() == 0
    for node in nodes:
        assert "the plug-in 'broken' did not start" in node.log.read_text()


def test_a_plugin_that_is_not_installed_is_a_configuration_error(tmp_path):
    text = client_text(tmp_path / "7", free_port(), {1: free_port()})
    text = text.replace("[node]", '[node]\nplugins = ["nobody"]')
    done = run_refused(tmp_path / "c.toml", text, "check")
    assert done.returncode == 2 and "node.plugins" in done.stderr and "nobody" in done.stderr
