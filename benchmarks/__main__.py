"""`python -m benchmarks [--quick] [--only NAME]`: uservpn beside shadowsocks-libev, on loopback.

Other programs: `python -m benchmarks lossy`, paths that lose packets (lossy.py); `datagrams`, bulk over UDP
beside other tunnels over UDP (datagrams.py); `rules`, loading and asking 100,000 rules (rules.py).

Every measurement starts its system anew, and the systems take turns (A B A B), so that neither
what ran before nor a drift of the machine favours one of them. The load (load.c) shares the
processors with the systems under test.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import datagrams, far, lossy, relay, rules
from benchmarks.processes import (
    START_LIMIT,
    BenchmarkError,
    Process,
    cpu_seconds,
    free_port,
    rss_kib,
    run,
    voluntary_switches,
    wait_for_port,
)

LOAD_LIMIT: Final = 180.0  # seconds for one run of the load
PARALLEL: Final = 64  # new connections at a time
FAR: Final = "far"
RELAY: Final = "relay"
OURS: Final = (FAR, RELAY)  # budgets of ours, not comparisons
MIB: Final = 1024 * 1024

Results = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    rounds: int
    bulk_bytes: int  # of all connections together
    connections: int
    sequential: int
    held: int
    rest_seconds: int


FULL: Final = Sizes(3, 1024 * MIB, 5000, 200, 5000, 20)
QUICK: Final = Sizes(1, 256 * MIB, 1000, 200, 1000, 5)


# ---- the systems --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A system that is up: where its proxy listens, and its two processes."""

    proxy: int
    client: Process
    server: Process
    server_port: int = 0

    @property
    def processes(self) -> dict[str, Process]:
        return {"client": self.client, "server": self.server}


System = Callable[[contextlib.ExitStack, Path], Running]


def start_uservpn(
    stack: contextlib.ExitStack,
    place: Path,
    way: Callable[[int], int] = lambda port: port,
    protocol: str = "tcp",
) -> Running:
    """`way`: from the server's port to the one that the client dials."""
    port, proxy = free_port(), free_port()
    url, key = f"{protocol}://127.0.0.1:{port}", str(place / "key")
    dialled = f"{protocol}://127.0.0.1:{way(port)}"
    arguments = {
        "server": ["--id", "1", "--listen", url, "--public", url, "--exit"],
        "client": ["--id", "7", "--entry", f"127.0.0.1:{proxy}", "--server", f"1={dialled}"],
    }
    started: dict[str, Process] = {}
    for role, options in arguments.items():
        config, state = place / f"{role}.toml", place / role[0]
        state.mkdir(mode=0o700)
        run([*_USERVPN, "init", "-c", str(config), "--key-file", key, *options], START_LIMIT)
        text = config.read_text()
        text = text.replace("[node]\n", f"[node]\nstate_dir = {json.dumps(str(state))}\n")
        text = text.replace("enabled = true\n", 'enabled = true\nallow = ["127.0.0.0/8"]\n')
        config.write_text(text)
        process = Process([*_USERVPN, "-c", str(config), "run"], place / f"{role}.log")
        stack.callback(process.stop)
        process.wait_for_line("ready", START_LIMIT)
        started[role] = process
    status = [*_USERVPN, "-c", str(place / "client.toml"), "status", "--json"]
    end = time.monotonic() + START_LIMIT
    while not _is_linked(json.loads(run(status, START_LIMIT))):
        if time.monotonic() > end:
            raise BenchmarkError(f"uservpn: no link within {START_LIMIT:g} s")
        time.sleep(0.1)
    return Running(proxy, started["client"], started["server"], port)


_USERVPN: Final = (sys.executable, "-m", "uservpn")


def _is_linked(status: Mapping[str, Any]) -> bool:
    return any(node["id"] == 1 and node["state"] == "up" for node in status["nodes"])


def start_shadowsocks(stack: contextlib.ExitStack, place: Path) -> Running:
    port, proxy = free_port(), free_port()
    common = {
        "server": "127.0.0.1",
        "server_port": port,
        "password": "benchmark",
        "method": "aes-256-gcm",
        "timeout": 600,
        "no_delay": True,
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
    config = place / "shadowsocks.json"
    config.write_text(json.dumps(common | {"local_address": "127.0.0.1", "local_port": proxy}))
    started: dict[str, Process] = {}
    for role, program, listening in (("server", "ss-server", port), ("client", "ss-local", proxy)):
        process = Process([program, "-c", str(config)], place / f"{role}.log")
        stack.callback(process.stop)
        wait_for_port(listening, process)
        started[role] = process
    return Running(proxy, started["client"], started["server"])


# ---- the measurements ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What a measurement needs besides the system: the load program, its server, the sizes."""

    load: str
    target: int
    sizes: Sizes
    place: Path

    def client(self, mode: str, system: Running, *arguments: object) -> dict[str, float]:
        words = [self.load, mode, str(system.proxy), str(self.target), *map(str, arguments)]
        result: dict[str, float] = json.loads(run(words, LOAD_LIMIT))
        return result


def measure_bulk(bench: Bench, system: Running) -> Results:
    results: Results = {}
    for direction in ("down", "up"):
        for count in (1, 16):
            each = bench.sizes.bulk_bytes // count
            before = {role: cpu_seconds(p.pid) for role, p in system.processes.items()}
            seconds = bench.client("bulk", system, direction, count, each)["seconds"]
            name = f"bulk {direction}, {count} connection{'s' if count > 1 else ''}"
            results[f"{name} (Gbit/s)"] = each * count * 8 / seconds / 1e9
            for role, process in system.processes.items():
                spent = cpu_seconds(process.pid) - before[role]
                results[f"{name}: CPU of the {role} (s/GB)"] = spent / (each * count / 1e9)
    return results


def measure_conn(bench: Bench, system: Running) -> Results:
    count = bench.sizes.connections
    before = {role: cpu_seconds(p.pid) for role, p in system.processes.items()}
    found = bench.client("conn", system, count, PARALLEL)
    return {
        f"new connections, {PARALLEL} at a time (1/s)": found["per_second"],
        f"new connections, {PARALLEL} at a time: median (ms)": found["p50_ms"],
        f"new connections, {PARALLEL} at a time: p99 (ms)": found["p99_ms"],
        **{
            f"a new connection: CPU of the {role} (us)": (cpu_seconds(p.pid) - before[role])
            / count
            * 1e6
            for role, p in system.processes.items()
        },
    }


def measure_first(bench: Bench, system: Running) -> Results:
    found = bench.client("conn", system, bench.sizes.sequential, 1)
    return {f"first byte, median of {bench.sizes.sequential} (ms)": found["p50_ms"]}


def measure_rest(bench: Bench, system: Running) -> Results:
    time.sleep(2.0)  # what starting left behind
    results: Results = {}
    pids = {role: process.pid for role, process in system.processes.items()}
    for role, pid in pids.items():
        results[f"idle: RSS of the {role} (MiB)"] = rss_kib(pid) / 1024
    before = {role: (cpu_seconds(pid), voluntary_switches(pid)) for role, pid in pids.items()}
    seconds = bench.sizes.rest_seconds
    time.sleep(seconds)
    for role, pid in pids.items():
        cpu, switches = before[role]
        results[f"idle: CPU of the {role} in {seconds} s (ms)"] = (cpu_seconds(pid) - cpu) * 1000
        results[f"idle: wake-ups of the {role} in {seconds} s"] = voluntary_switches(pid) - switches
    return results


def measure_held(bench: Bench, system: Running) -> Results:
    count = bench.sizes.held
    before = {role: rss_kib(p.pid) for role, p in system.processes.items()}
    words = [bench.load, "idle", str(system.proxy), str(bench.target), str(count)]
    holder = Process(words, bench.place / "idle.log", LOAD_LIMIT)
    try:
        holder.wait_for_line('{"open"', LOAD_LIMIT)
        time.sleep(2.0)
        after = {role: rss_kib(p.pid) for role, p in system.processes.items()}
    finally:
        holder.stop()
    results: Results = {}
    for role, kib in after.items():
        name = f"{count} idle connections"
        results[f"{name}: RSS of the {role} (MiB)"] = kib / 1024
        results[f"{name}: {role}, each (KiB)"] = (kib - before[role]) / count
    return results


def measure_far(bench: Bench) -> Results:
    """A system of its own, behind a delay line."""
    place = Path(tempfile.mkdtemp(prefix="ub", dir=bench.place))
    with contextlib.ExitStack() as stack:

        def way(port: int) -> int:
            line = far.DelayLine(port)
            stack.callback(line.close)
            return line.port

        running = start_uservpn(stack, place, way)
        port = stack.enter_context(far.echo_server())
        return far.measure(running.proxy, port, 20)


def measure_relay(bench: Bench) -> Results:
    """One node, first as the exit of a client, then as a relay between two bare ends."""
    place = Path(tempfile.mkdtemp(prefix="ub", dir=bench.place))
    size = bench.sizes.bulk_bytes
    with contextlib.ExitStack() as stack:
        running = start_uservpn(stack, place)
        bench.client("conn", running, 8, 1)
        pid = running.server.pid
        before = cpu_seconds(pid)
        seconds = bench.client("bulk", running, "down", 1, size)["seconds"]
        spent = cpu_seconds(pid) - before
        as_exit = {
            "exit (Gbit/s)": size * 8 / seconds / 1e9,
            "exit: CPU (s/GB)": spent / (size / 1e9),
        }
        running.client.stop()
        key = relay.key_of((place / "key").read_text())
        port = running.server_port
        found = relay.measure(key, port, size, lambda: cpu_seconds(pid))
    results = as_exit | found | relay.measure_copy(size)
    results["relay / exit, speed"] = results["relay (Gbit/s)"] / results["exit (Gbit/s)"]
    results["relay / exit, CPU"] = results["relay: CPU (s/GB)"] / results["exit: CPU (s/GB)"]
    bare = results["bare copy: CPU (s/GB)"]
    results["bare copy / exit, CPU"] = bare / results["exit: CPU (s/GB)"]
    results["relay / bare copy, CPU"] = results["relay: CPU (s/GB)"] / bare
    return results


BENCHMARKS: Final[dict[str, Callable[[Bench, Running], Results]]] = {
    "bulk": measure_bulk,
    "conn": measure_conn,
    "first": measure_first,
    "rest": measure_rest,
    "held": measure_held,
}


def measure(name: str, bench: Bench, system: System) -> Results:
    """One measurement on a system that is started for it, and ended after it."""
    place = Path(tempfile.mkdtemp(prefix="ub", dir=bench.place))
    with contextlib.ExitStack() as stack:
        running = system(stack, place)
        bench.client("conn", running, 8, 1)  # the way works, and is warm
        return BENCHMARKS[name](bench, running)


# ---- the whole ----------------------------------------------------------------------------------


def table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """Lines of Markdown: one row for each measured value, the median of its rounds."""
    systems = list(results)
    heads = ["", *systems] + (["ratio"] if len(systems) == 2 else [])
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for row in dict.fromkeys(row for values in results.values() for row in values):
        medians = [
            statistics.median(results[s][row]) if row in results[s] else None for s in systems
        ]
        cells = [row, *("-" if value is None else shown(value) for value in medians)]
        if len(systems) == 2:
            a, b = medians
            cells.append("" if a is None or not b else f"{a / b:.2f}")
        yield "| " + " | ".join(cells) + " |"


def shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def main() -> int:
    if sys.argv[1:2] == ["lossy"]:
        return lossy.main(sys.argv[2:])
    if sys.argv[1:2] == ["datagrams"]:
        return datagrams.main(sys.argv[2:])
    if sys.argv[1:2] == ["rules"]:
        return rules.main()
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="one round, smaller sizes")
    parser.add_argument("--only", choices=[*BENCHMARKS, *OURS], help="only this benchmark")
    parser.add_argument(
        "--protocol", choices=["tcp", "udp"], default="tcp", help="of uservpn's links"
    )
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = 2 * sizes.held + 200  # shadowsocks has two sockets for each connection
    if hard != resource.RLIM_INFINITY and hard < needed:
        print(f"The limit of open files is {hard}, and {needed} are needed.", file=sys.stderr)
        return 1

    uservpn: System = functools.partial(start_uservpn, protocol=options.protocol)
    systems: dict[str, System] = {"uservpn": uservpn}
    if shutil.which("ss-server") and shutil.which("ss-local"):
        systems["shadowsocks-libev"] = start_shadowsocks
    else:
        print("shadowsocks-libev is not installed: uservpn is measured alone.\n")
    names = [options.only] if options.only else [*BENCHMARKS, *OURS]
    results: dict[str, dict[str, list[float]]] = {system: {} for system in systems}
    failures = 0
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ub")))
        load = str(place / "load")
        source = str(Path(__file__).with_name("load.c"))
        run(["gcc", "-O2", "-Wall", "-pthread", "-o", load, source], 60.0)
        rounds = [(name, number) for name in names for number in range(sizes.rounds)]
        for name, number in rounds:
            for system, start in systems.items():
                if name in OURS and system != "uservpn":
                    continue
                print(f"{name}, round {number + 1}: {system}", file=sys.stderr, flush=True)
                target = free_port()
                sink = Process([load, "server", str(target)], place / "sink.log")
                try:
                    sink.wait_for_line("ready", START_LIMIT)
                    bench = Bench(load, target, sizes, place)
                    alone = {FAR: measure_far, RELAY: measure_relay}.get(name)
                    found = alone(bench) if alone else measure(name, bench, start)
                except (BenchmarkError, OSError) as error:
                    failures += 1
                    print(f"{name}, round {number + 1}: {system}: {error}", file=sys.stderr)
                    continue
                finally:
                    sink.stop()
                for row, value in found.items():
                    results[system].setdefault(row, []).append(value)
    rounds_text = f"{sizes.rounds} round{'s' if sizes.rounds > 1 else ''}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"Medians of {rounds_text}; {os.cpu_count()} processors; {python}.\n")
    print("\n".join(table(results)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
