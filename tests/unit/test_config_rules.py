"""Rules, groups, lists and Geo-IP as the configuration has them: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uservpn.chooser.rules import RuleSet
from uservpn.cli.summary import summary
from uservpn.control import files
from uservpn.control import rules as control_rules
from uservpn.control.config import Config, diff, parse
from uservpn.errors import ConfigError

BASE = """[network]
key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

[node]
id = 7
listen = ["tcp://127.0.0.1:7000"]
"""
HOME = BASE + 'country = "de"\n'
RULES = """[chooser]
rules = [
  { exact = "www.example.com", exit = 3 },
  { suffix = ["a.example", "b.example"], port = [443, "8000-8999"], exit = "fast", strict = true },
  { country = "own", exit = "direct" },
  { country = ["cn", "ru"], not = ["cn", "RU"] },
  # the next one has a { in its comment, and a value with a ] in it
  { regex = '^[ab]\\.', exit = "fra" },
  { keyword = "bank", exit = "order" },
  { cidr = "10.0.0.0/8", exit = "reject" },
  { all = true, exit = "us" },
]
[chooser.groups]
fast = { pick = "fastest", exits = ["us", 3, "fra"] }
order = { pick = "fallback", exits = ["fra", "us"] }
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def read(text: str, path: Path = Path("/etc/uservpn/config.toml")) -> Config:
    return parse(text, path)


def problems_of(text: str, path: Path = Path("/etc/uservpn/config.toml")) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, path)
    return caught.value.problems


def rules_of(config: Config) -> RuleSet:
    assert config.chooser.rules is not None
    return config.chooser.rules


def text_of(rules: RuleSet, host: str, port: int = 443, country: str | None = "") -> str:
    match = rules.match(host, port, country).match
    return "" if match is None else match.text


# --- what is right ------------------------------------------------------------------------------


def test_rules_of_every_kind() -> None:
    rules = rules_of(read(HOME + RULES))
    assert len(rules) == 8
    assert (
        text_of(rules, "www.example.com") == "rule 1: exact www.example.com -> 3 (chooser.rules[0])"
    )
    assert text_of(rules, "x.b.example", 8080) == (
        "rule 2: suffix b.example -> fast, strict (chooser.rules[1])"
    )
    assert text_of(rules, "x.b.example", 80).startswith("rule 8: all -> us")
    assert (
        text_of(rules, "x.test", country="DE") == "rule 3: country own -> direct (chooser.rules[2])"
    )
    assert "country RU -> auto, not cn ru" in text_of(rules, "x.test", country="RU")
    assert "regex ^[ab]\\. -> fra" in text_of(rules, "b.test")
    assert "keyword bank -> order" in text_of(rules, "mybank.test")
    assert "cidr 10.0.0.0/8 -> reject" in text_of(rules, "10.1.2.3")
    assert rules.match("x.test", 443).needs_country


def test_rules_as_tables_of_their_own() -> None:
    text = BASE + "[[chooser.rules]]\nsuffix = 'a.test'\nexit = 3\n\n"
    text += "[[chooser.rules]]\nexact = 'b'\nexit = 'us'\n"
    rules = rules_of(read(text))
    assert "rule 1: suffix a.test -> 3" in text_of(rules, "x.a.test")
    assert "rule 2: exact b -> us" in text_of(rules, "b")
    problems = problems_of(text.replace("'us'", "'x y'"))
    assert [
        problem.startswith("/etc/uservpn/config.toml:13: chooser.rules[1].exit")
        for problem in problems
    ]


def test_a_configuration_without_rules_has_none() -> None:
    for text in (
        "",
        "[chooser]\n",
        "[chooser]\nrules = []\n",
        "[chooser]\nrules = []\ngroups = {}\n",
    ):
        assert read(BASE + text).chooser.rules is None


def test_the_default_may_be_a_country_or_a_group() -> None:
    group = "[chooser.groups]\nnear = { pick = 'spread', exits = [3, 4] }\n"
    assert read(BASE + "[chooser]\ndefault = 'near'\n" + group).chooser.default == "near"
    assert list(read(BASE + group).chooser.groups) == ["near"]
    assert read(BASE + "[chooser]\ndefault = 'us'\n").chooser.default == "us"
    assert "no country" in problems_of(BASE + "[chooser]\ndefault = 'xx'\n")[0]


def test_a_list_beside_the_configuration(place: Path) -> None:
    place.with_name("list.txt").write_text(
        "example.com\nkeyword bank\n(?=)\nregex (?=a)\nregex (?!b)\n"
    )
    config = None
    with pytest.raises(ConfigError, match=r"list.txt:3: chooser.rules\[0\].file: found"):
        read(BASE + "[chooser]\nrules = [{ file = 'list.txt', port = 443, exit = 'us' }]\n", place)
    place.with_name("list.txt").write_text(
        "example.com\nkeyword bank\n\nregex (?=a)\nregex (?!b)\n"
    )
    config = read(
        BASE + "[chooser]\nrules = [{ file = 'list.txt', port = 443, exit = 'us' }]\n", place
    )
    assert [warning.partition("list.txt")[2] for warning in config.warnings] == [
        ":4: 2 lines left out: a group that looks around or sets flags cannot be judged here"
    ]
    rules = rules_of(config)
    assert text_of(rules, "a.example.com") == (
        "rule 1: suffix example.com in list.txt:1 -> us (chooser.rules[0])"
    )
    assert text_of(rules, "mybank.test").startswith("rule 1: keyword bank in list.txt:2")
    assert text_of(rules, "a.example.com", 80) == ""


def test_another_content_of_a_list_is_another_configuration(place: Path) -> None:
    text = BASE + "[chooser]\nrules = [{ file = 'list.txt', exit = 'us' }]\n"
    listed = place.with_name("list.txt")
    listed.write_text("example.com\n")
    old, same = read(text, place), read(text, place)
    assert old == same and diff(old, same) == frozenset()
    listed.write_text("example.org\n")
    new = read(text, place)
    assert diff(old, new) == {"chooser"}
    assert "example.org" in text_of(rules_of(new), "example.org")


def test_the_own_country_is_part_of_what_rules_mean() -> None:
    rule = "[chooser]\nrules = [{ country = 'own', exit = 'direct' }]\n"
    here, there = read(HOME + rule), read(BASE + 'country = "fr"\n' + rule)
    assert diff(here, there) == {"node", "chooser"}
    assert "direct" in text_of(rules_of(there), "x.test", country="FR")


def test_a_rule_that_is_never_reached_is_warned_of() -> None:
    config = read(
        BASE + "[chooser]\nrules = [{ all = true, exit = 3 }, { suffix = 'a.b', exit = 4 }]\n"
    )
    (warning,) = config.warnings
    assert warning.endswith("chooser.rules[1] is never reached: rule 1 takes everything")
    limited = (
        "[chooser]\nrules = [{ all = true, port = 80, exit = 3 }, { suffix = 'a.b', exit = 4 }]\n"
    )
    assert read(BASE + limited).warnings == ()


def test_who_looks_for_the_node_does_not_read_its_rules(place: Path) -> None:
    text = BASE + "[chooser]\nsession_idle = '1h'\nrules = [{ file = 'no such list', exit = 1 }]\n"
    chooser = parse(text, place, with_rules=False).chooser
    assert chooser.rules is None and chooser.session_idle == 3600
    with pytest.raises(ConfigError):
        parse(text, place)


# --- what is wrong ------------------------------------------------------------------------------


def rule(text: str) -> str:
    return f"[chooser]\nrules = [\n  {{ suffix = 'first.example', exit = 1 }},\n  {{ {text} }},\n]"


WRONG = [
    ("no condition", rule("exit = 'us'"), 10, "rules[1]", ["without a condition", "suffix"]),
    ("no target", rule("suffix = 'a.b'"), 10, "rules[1].exit", ["nothing", '"direct"']),
    (
        "unknown key",
        rule("sufix = 'a.b', all = true, exit = 1"),
        10,
        "rules[1].sufix",
        ["'suffix'"],
    ),
    ("wrong type", rule("suffix = 1, exit = 1"), 10, "rules[1].suffix", ["integer 1", "string"]),
    ("wrong suffix", rule("suffix = '*.a.b', exit = 1"), 10, "rules[1].suffix", ["'*.a.b'"]),
    ("empty array", rule("suffix = [], exit = 1"), 10, "rules[1].suffix", ["empty array"]),
    ("one of two", rule("suffix = ['a.b', 'c d'], exit = 1"), 10, "rules[1].suffix", ["'c d'"]),
    ("keyword", rule("keyword = 'a b', exit = 1"), 10, "rules[1].keyword", ["'a b'"]),
    ("wildcard", rule("wildcard = '*', exit = 1"), 10, "rules[1].wildcard", ["'*'", "beside"]),
    ("regex", rule("regex = '(a', exit = 1"), 10, "rules[1].regex", ["without its ')'"]),
    ("regex beyond", rule("regex = '(?=a)', exit = 1"), 10, "rules[1].regex", ["looks around"]),
    ("cidr", rule("cidr = '10.0.0.0/33', exit = 1"), 10, "rules[1].cidr", ["'10.0.0.0/33'"]),
    ("port", rule("port = 0, exit = 1"), 10, "rules[1].port", ["'0'", "443"]),
    ("ports", rule("port = [80, '9-8'], exit = 1"), 10, "rules[1].port", ["'9-8'"]),
    ("country", rule("country = 'uk', exit = 1"), 10, "rules[1].country", ["'uk'", "ISO 3166"]),
    ("own", rule("country = 'own', exit = 1"), 10, "rules[1].country", ["'own'", "node.country"]),
    ("all = false", rule("all = false, exit = 1"), 10, "rules[1].all", ["false", "true"]),
    ("exit 0", rule("all = true, exit = 0"), 10, "rules[1].exit", ["0", "1 to 254"]),
    ("exit uk", rule("all = true, exit = 'uk'"), 10, "rules[1].exit", ["'uk'", "'gb'"]),
    ("not", rule("all = true, not = ['xx']"), 10, "rules[1].not", ["'xx'", "countries"]),
    ("not direct", rule("all = true, exit = 'direct', not = 'cn'"), 10, "rules[1].exit", ["never"]),
    ("strict", rule("all = true, exit = 1, strict = 1"), 10, "rules[1].strict", ["integer 1"]),
    (
        "format alone",
        rule("all = true, exit = 1, format = 'clash'"),
        10,
        "rules[1].format",
        ["file"],
    ),
    ("no file", rule("file = 'no.txt', exit = 1"), 10, "rules[1].file", ["no such file", "no.txt"]),
    ("zero byte", rule('file = "a\\u0000", exit = 1'), 10, "rules[1].file", ["cannot be read"]),
    ("format", rule("file = 'a', format = 'x', exit = 1"), 10, "rules[1].format", ["'x'"]),
    ("no table", "[chooser]\nrules = [1]", 8, "rules", ["array"]),
    ("group", "[chooser.groups]\nfast = {}", 8, "groups.fast.pick", ["nothing", "fastest"]),
    (
        "pick",
        "[chooser.groups]\nfast = { pick = 'x', exits = [1] }",
        8,
        "groups.fast.pick",
        ["'x'"],
    ),
    (
        "exits",
        "[chooser.groups]\nfast = { pick = 'spread', exits = [] }",
        8,
        "groups.fast.exits",
        ["1 to"],
    ),
    (
        "member",
        "[chooser.groups]\nfast = { pick = 'spread', exits = [300] }",
        8,
        "groups.fast",
        ["300"],
    ),
    (
        "group us",
        "[chooser.groups]\nus = { pick = 'spread', exits = [1] }",
        8,
        "groups.us",
        ["'us'"],
    ),
    (
        "group auto",
        "[chooser.groups]\nauto = { pick = 'spread', exits = [1] }",
        8,
        "groups.auto",
        ["reserved"],
    ),
]


@pytest.mark.parametrize(
    ("added", "line", "key_path", "parts"),
    [pytest.param(*case[1:], id=case[0]) for case in WRONG],
)
def test_a_problem_names_file_line_key_found_and_allowed(
    added: str, line: int, key_path: str, parts: list[str]
) -> None:
    problem = problems_of(BASE + added + "\n")[0]
    assert problem.startswith(f"/etc/uservpn/config.toml:{line}: chooser.{key_path}"), problem
    assert ": found " in problem and "; allowed: " in problem
    assert all(part in problem for part in parts), problem


def test_all_problems_at_once_and_no_more_than_can_be_read() -> None:
    bad = ",\n".join("{ suffix = 'a b', exit = 300 }" for _ in range(1000))
    problems = problems_of(BASE + f"[chooser]\nrules = [\n{bad}\n]\n")
    assert len(problems) == control_rules.PROBLEMS_MAX
    assert [problem.split(":")[1] for problem in problems[:4]] == ["9", "9", "10", "10"]


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        (b"good.example\n\xff\xfe\n", 2, "not UTF-8"),
        (b"good.example\na b c\n", 2, "'a b c'"),
        (b"payload:\n  - DOMAIN,x y\n", 2, "exact 'x y'"),
        (b"good.example\ncountry own\n", 2, "the country 'own'"),
    ],
)
def test_a_wrong_list(place: Path, content: bytes, line: int, found: str) -> None:
    place.with_name("list.txt").write_bytes(content)
    (problem,) = problems_of(BASE + "[chooser]\nrules = [{ file = 'list.txt', exit = 1 }]\n", place)
    assert problem.startswith(f"list.txt:{line}: chooser.rules[0].file: found "), problem
    assert found in problem


def test_lists_and_rules_have_limits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.with_name("list.txt").write_text("example.com\n" * 20)
    text = (
        BASE
        + "[chooser]\nrules = [\n{ file = 'list.txt', exit = 1 },\n{ file = 'list.txt', exit = 2 }]\n"
    )
    for module, name, value, found in (
        (control_rules, "LIST_SIZE_MAX", 100, "larger than 100 bytes"),
        (control_rules, "LISTS_MAX", 1, "one list more"),
        (control_rules.RuleSetBuilder.add.__globals__, "ORDERS_MAX", 30, "more than 30"),
    ):
        with monkeypatch.context() as patch:
            if isinstance(module, dict):
                patch.setitem(module, name, value)
            else:
                patch.setattr(module, name, value)
            assert found in problems_of(text, place)[-1]
    many = ",".join("{ suffix = 'a.b', exit = 1 }" for _ in range(10_001))
    assert "at most 10000 rules" in problems_of(BASE + f"[chooser]\nrules = [{many}]\n")[0]
    greedy = ",".join("{ regex = 'x{250}', exit = 1 }" for _ in range(600))
    assert "together" in problems_of(BASE + f"[chooser]\nrules = [{greedy}]\n")[0]


VALUES = [
    "'x'",
    "''",
    "1",
    "true",
    "[]",
    "['x', 'a.b']",
    "{}",
    "'own'",
    "'us'",
    "[443, '1-2']",
    "1.5",
    "'*'",
]
KEYS = ["exact", "suffix", "keyword", "wildcard", "regex", "cidr", "port", "country", "all", "file"]
KEYS += ["format", "exit", "not", "strict", "other"]


@given(
    st.lists(
        st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=5), max_size=4
    )
)
def test_no_mix_of_keys_and_values_breaks_the_reader(tables: list[dict[str, str]]) -> None:
    rules = ", ".join("{" + ", ".join(f"{k} = {v}" for k, v in t.items()) + "}" for t in tables)
    try:
        config = read(HOME + f"[chooser]\nrules = [{rules}]\n")
    except ConfigError as error:
        assert error.problems
    else:
        assert (config.chooser.rules is None) == (not tables)


# --- Geo-IP -------------------------------------------------------------------------------------


def test_geo_ip_is_found_out_unless_told(place: Path) -> None:
    assert read(BASE).geo.enabled == "auto"
    assert read(BASE + "[geo]\nenabled = false\n").geo.enabled is False
    assert read(BASE + "[geo]\nenabled = true\n").geo.enabled is True
    place.with_name("c.mmdb").write_bytes(b"data" + files.MMDB_MARK + b"metadata")
    geo = read(BASE + "[geo]\ndatabase = 'c.mmdb'\n", place).geo
    assert geo.database == place.with_name("c.mmdb")


def test_a_missing_package_or_database_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such file" in problems_of(BASE + "[geo]\ndatabase = 'c.mmdb'\n", place)[0]
    place.with_name("c.mmdb").write_bytes(b"something else")
    assert "no MMDB file" in problems_of(BASE + "[geo]\ndatabase = 'c.mmdb'\n", place)[0]
    place.with_name("c.mmdb").write_bytes(files.MMDB_MARK)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for added, package in (("database = 'c.mmdb'", "maxminddb"), ("enabled = true", "iptocc")):
        (problem,) = problems_of(BASE + f"[geo]\n{added}\n", place)
        assert f"the package {package}: pip install 'uservpn[geo]'" in problem
    assert read(BASE + "[geo]\n").geo.enabled == "auto"


# --- uservpn check ------------------------------------------------------------------------------


def test_check_tells_rules_groups_and_geo_ip(place: Path) -> None:
    place.with_name("list.txt").write_text("".join(f"site{n}.example\n" for n in range(2000)))
    text = HOME + RULES.replace("{ all", "{ file = 'list.txt', exit = 'fast' },\n{ all")
    lines = summary(place, read(text, place)).splitlines()
    assert any(line.startswith("rules    9, with 2010 conditions, ") for line in lines)
    assert "list     rule 8: list.txt, 2000 conditions -> fast" in lines
    assert "group    fast: the fastest of us, 3, fra" in lines
    assert "group    order: in this order, fra, us" in lines
    assert not any(
        line.startswith(("rules", "group")) for line in summary(place, read(BASE)).splitlines()
    )
