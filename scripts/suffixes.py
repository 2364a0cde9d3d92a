"""Writes `src/uservpn/chooser/suffixes.py` from the public suffix list in the package publicsuffixlist.

Run by `make suffixes`. Only the list is taken: the rules of both sections, names in their ASCII form.
Rules of one label are left out, since a name under no rule has its last label for a public suffix.
"""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src" / "uservpn" / "chooser" / "suffixes.py"
HEADER = '''\
# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
"""The public suffix list (publicsuffix.org), without its comments. Do not edit: `make suffixes`.

Both sections, ICANN's and the private one; names in their ASCII form; ordered by top-level domain. A
rule of one label is left out: a name that no rule covers has its last label for a suffix.
"""

from typing import Final

VERSION: Final = "{version}"
RULES: Final = """
{rules}
"""
'''


def rules_of(text: str) -> list[str]:
    """The rules of more than one label in ASCII, ordered by their labels from the right."""
    rules = set()
    for line in text.splitlines():
        rule = line.split("//")[0].strip().split(" ")[0]
        if "." in rule:
            rules.add(ascii_of(rule))
    return sorted(rules, key=lambda rule: rule.lstrip("!").split(".")[::-1])


def ascii_of(rule: str) -> str:
    """A rule with its labels in punycode; `*` and `!` stay."""
    mark = "!" if rule.startswith("!") else ""
    labels = rule.removeprefix("!").lower().split(".")
    return mark + ".".join(label.encode("idna").decode() for label in labels)


def main() -> int:
    """Rewrites the module; says what changed in size."""
    text = (files("publicsuffixlist") / "public_suffix_list.dat").read_text(encoding="utf-8")
    found = re.search(r"^// VERSION: (\S+)$", text, re.MULTILINE)
    if found is None or "===BEGIN PRIVATE DOMAINS===" not in text:
        print("not the public suffix list, or not all of it", file=sys.stderr)
        return 1
    rules = rules_of(text)
    TARGET.write_text(
        HEADER.format(version=found[1], rules="\n".join(rules)), encoding="ascii", newline="\n"
    )
    print(f"{len(rules)} rules of {found[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
