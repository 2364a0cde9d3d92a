"""`python -m benchmarks rules`: 100,000 rules, how long they take to load and how long to look up.

The lists are written to files in the forms that people have, named by a configuration, and loaded as
`uservpn run` loads them. Names are drawn from a seed; half of the look-ups find a rule.
"""

from __future__ import annotations

import base64
import gc
import platform
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from uservpn.chooser.conditions import read_condition
from uservpn.chooser.index import Kind
from uservpn.chooser.rules import RuleSet, RuleSetBuilder
from uservpn.chooser.targets import parse_target
from uservpn.control.config import load

COUNT: Final = 100_000
LOOK_UPS: Final = 50_000
ROUNDS: Final = 5
LOAD_LIMIT_S: Final = 1.0
LOOK_UP_LIMIT_US: Final = 5.0
HEAD: Final = """[network]
key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
[node]
id = 7
country = "de"
listen = ["tcp://127.0.0.1:7000"]
"""
ENDINGS: Final = ("com", "net", "org", "de", "co.uk", "io", "example", "com.cn")


@dataclass(frozen=True)
class Case:
    """A set of rules as it is written, and hosts of which about half match."""

    name: str
    load: Callable[[], RuleSet]
    hosts: list[tuple[str, int]]


def names(dice: random.Random, count: int) -> list[str]:
    """Different domains that look like domains."""
    found: dict[str, None] = {}
    while len(found) < count:
        length = dice.randint(4, 14)
        label = "".join(dice.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length))
        found[f"a{label}.{dice.choice(ENDINGS)}"] = None
    return list(found)


def hosts(dice: random.Random, known: list[str]) -> list[tuple[str, int]]:
    """Hosts below known domains and below others, in turns."""
    others = names(dice, LOOK_UPS // 2)
    asked = []
    for other in others:
        front = dice.choice(["", "www.", "static.", "a.b.c."])
        asked += [(front + dice.choice(known), 443), (front + "x" + other, 443)]
    return asked


def one_list(place: Path, dice: random.Random) -> Case:
    """A list of domains, as they are published to be blocked."""
    known = names(dice, COUNT)
    (place / "domains.txt").write_text("".join(f"{name}\n" for name in known))
    config = place / "one.toml"
    config.write_text(HEAD + '[chooser]\nrules = [{ file = "domains.txt", exit = "reject" }]\n')
    return Case("a list of domains", loader(config), hosts(dice, known))


def every_form(place: Path, dice: random.Random) -> Case:
    """Lists of every form, combined with ports, countries and exceptions, and inline rules around."""
    known = names(dice, 74_000)
    networks = [
        f"{dice.randint(1, 223)}.{dice.randrange(256)}.{dice.randrange(256)}.0/{dice.randint(16, 24)}"
        for _ in range(12_000)
    ]
    classical = [f"DOMAIN-SUFFIX,{name}" for name in known[:20_000]]
    classical += [f"DOMAIN,www.{name}" for name in names(dice, 5_000)]
    classical += [f"DOMAIN-KEYWORD,{name[:9]}" for name in names(dice, 200)]
    classical += [f"IP-CIDR6,2001:{number:x}::/32,no-resolve" for number in range(3_800)]
    proxied = ["[AutoProxy 0.2.9]", *(f"||{name}" for name in known[20_000:30_000])]
    proxied += [f"@@||www.{name}" for name in known[20_000:21_000]]
    proxied += [f"|https://{name}/login" for name in names(dice, 2_000)]
    proxied += [f".{name}" for name in names(dice, 1_900)]
    proxied += [
        rf"/^https?:\/\/([^\/]+\.)*{name[:6]}[a-z0-9]*\.(com|net|co\.uk)\/.*/"
        for name in names(dice, 100)
    ]
    encoded = base64.encodebytes("\n".join(proxied).encode())
    (place / "gfwlist.txt").write_bytes(encoded)
    (place / "domain.yaml").write_text(payload(f"+.{name}" for name in known[30_000:50_000]))
    (place / "ipcidr.yaml").write_text(payload(networks))
    (place / "classical.yaml").write_text(payload(classical))
    (place / "own.txt").write_text("".join(f"{name}\n" for name in known[50_000:]))
    config = place / "every.toml"
    config.write_text(
        HEAD
        + """[chooser]
rules = [
  { suffix = ["mil", "gov"], exit = "us", strict = true },
  { file = "gfwlist.txt", exit = "near" },
  { file = "domain.yaml", exit = "reject" },
  { file = "ipcidr.yaml", exit = 3 },
  { file = "classical.yaml", port = "1-49151", exit = "wide" },
  { file = "own.txt", not = ["cn", "ru"] },
  { wildcard = "*.cdn-??.*", exit = "near" },
  { regex = '^ads?[0-9]*\\.', exit = "reject" },
  { country = "own", exit = "direct" },
]
[chooser.groups]
near = { pick = "fastest", exits = [1, 2, 3] }
wide = { pick = "spread", exits = ["us", "de"] }
"""
    )
    asked = hosts(dice, known)
    asked[::20] = [(f"10.{n % 256}.{n // 256 % 256}.7", 443) for n in range(len(asked[::20]))]
    return Case("lists of every form", loader(config), asked)


def many_patterns(place: Path, dice: random.Random) -> Case:
    """What costs most: keywords and regular expressions by the thousand."""
    lines = [f"keyword {name[:9]}" for name in names(dice, 10_000)]
    lines += [rf"regex ^[a-z]+[0-9]*\.{name[1:7]}" for name in names(dice, 1_000)]
    lines += [rf"regex ^(x{number}|y[0-9]+)z\." for number in range(100)]
    (place / "patterns.txt").write_text("\n".join(lines))
    config = place / "patterns.toml"
    config.write_text(HEAD + '[chooser]\nrules = [{ file = "patterns.txt", exit = 3 }]\n')
    known = [line.split()[1] + ".example" for line in lines[:10_000]]
    return Case("keywords and patterns", loader(config), hosts(dice, known))


def payload(items: object) -> str:
    """A rule provider of Clash."""
    assert hasattr(items, "__iter__")
    return "payload:\n" + "".join(f"  - '{item}'\n" for item in items)


def separate(_: Path, dice: random.Random) -> Case:
    """As many rules with a target each, as a program would add them."""
    known = names(dice, COUNT)
    targets = [parse_target(number, {}) for number in range(1, 255)]

    def build() -> RuleSet:
        builder = RuleSetBuilder()
        for number, name in enumerate(known):
            builder.add(targets[number % 254], [[read_condition(Kind.SUFFIX, name)]])
        return builder.build(b"")

    return Case("a rule for each domain", build, hosts(dice, known))


def loader(path: Path) -> Callable[[], RuleSet]:
    path.chmod(0o600)

    def run() -> RuleSet:
        rules = load(path).chooser.rules
        assert rules is not None
        return rules

    return run


def measure(case: Case) -> str:
    """A line of the table. Times are of the processor, so that other programs count for less."""
    loads = []
    for _ in range(ROUNDS):
        gc.collect()
        start = time.process_time()
        rules = case.load()
        loads.append(time.process_time() - start)
    load_s = sorted(loads)[ROUNDS // 2]
    look_ups = look_up_times(rules, case.hosts)
    median, p99 = (look_ups[len(look_ups) * part // 100] / 1000 for part in (50, 99))
    matched = sum(rules.match(host, port).match is not None for host, port in case.hosts)
    count = sum(source.condition_count for source in rules.sources)
    return (
        f"{case.name:<24}{count:>11}{load_s:>9.2f}{median:>9.1f}{p99:>9.1f}"
        f"{held_size(case) / 2**20:>9.1f}{100 * matched / len(case.hosts):>8.0f} %"
    )


def look_up_times(rules: RuleSet, asked: list[tuple[str, int]]) -> list[int]:
    """Nanoseconds, sorted; of a second pass, when regular expressions know their ways."""
    times: list[int] = []
    clock = time.perf_counter_ns
    for _ in range(2):
        times.clear()
        for host, port in asked:
            start = clock()
            rules.match(host, port)
            times.append(clock() - start)
    return sorted(times)


def held_size(case: Case) -> int:
    """Bytes that the rules hold."""
    gc.collect()
    tracemalloc.start()
    rules = case.load()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del rules
    return held


def main() -> int:
    """Prints the table."""
    dice = random.Random(1)
    print(
        f"{platform.python_implementation()} {platform.python_version()}; medians of {ROUNDS} loads"
    )
    print(f"{'':<24}{'conditions':>11}{'load s':>9}{'us':>9}{'p99 us':>9}{'MiB':>9}{'matched':>10}")
    with tempfile.TemporaryDirectory(prefix="rules") as name:
        place = Path(name)
        for make in (one_list, separate, every_form, many_patterns):
            print(measure(make(place, dice)), flush=True)
    print(f"wanted: {LOAD_LIMIT_S:g} s and, at the median, {LOOK_UP_LIMIT_US:g} us a look-up")
    return 0
