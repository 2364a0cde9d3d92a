"""`uservpn join` (R03): a newcomer with the key and one server's address gets a free number, and runs."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mesh import KEY, USERVPN, NodeProcess, free_port, server_text, wait_until


def _join(folder, port, *words, server="1", protocol="tcp", command=("join",)):
    return subprocess.run(
        [*USERVPN, *command, "-c", str(folder / "c.toml"), "--key-file", str(folder / "key"),
         "--server", f"{server}={protocol}://127.0.0.1:{port}", *words],
        capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip


def test_a_newcomer_gets_a_free_number_and_is_a_member(tmp_path):
    port = free_port()
    text = server_text(tmp_path / "1", port)
    text = text.replace(f'listen = ["tcp://127.0.0.1:{port}"]',
                        f'listen = ["tcp://127.0.0.1:{port}", "udp://127.0.0.1:{port}"]')  # fmt: skip
    assert "udp://" in text
    server = NodeProcess(tmp_path / "1", text)
    nodes = [server]
    try:
        for number, protocol in enumerate(("tcp", "udp")):
            folder = tmp_path / f"n{number}"
            folder.mkdir()
            (folder / "key").write_text(KEY + "\n")
            done = _join(folder, port, "--entry", f"127.0.0.1:{free_port()}", protocol=protocol)
            assert done.returncode == 0, done.stderr
            assert "is free." in done.stdout
            config = (folder / "c.toml").read_text()
            config = config.replace("[node]", f'[node]\nstate_dir = "{folder}/s"')
            nodes.append(NodeProcess(folder, config, env={}))  # by the command line
            wait_until(nodes[-1].is_linked)
        rows = {row["id"] for row in server.status()["nodes"]}
        assert len(rows) == 2 and 1 not in rows
        assert not any(node.status()["duplicates"] for node in nodes)
        again = tmp_path / "again"
        again.mkdir()
        (again / "key").write_text(KEY + "\n")
        done = _join(again, port, "--id", "auto", command=("init",))
        assert done.returncode == 0, done.stderr
        force = partial(_join, again, command=("join", "--force"))
        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(force, port, server="2")
            nobody = pool.submit(force, free_port())
            for asked, sentence in (
                (other, "another key, or it is not node 2"),
                (nobody, "refused"),
            ):
                done = asked.result()
                assert done.returncode == 1 and sentence in done.stderr, (done.stdout, done.stderr)
        (again / "key").unlink()
        done = _join(again, port, command=("join", "--force"))
        assert done.returncode == 2 and "--key-file" in done.stderr
    finally:
        for node in reversed(nodes):
            node.stop()
    assert "Traceback" not in "".join(node.log.read_text() for node in nodes)
