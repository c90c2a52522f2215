"""Runs the kernel's tests of tc through `vnic shape tc import`, and lists what differs.

usage: tdc.py DIR [NAME...]

DIR: tools/testing/selftests/tc-testing/tc-tests/qdiscs of a kernel's source, which is not part of
this project (GPL). NAME: of files without .json. Default: those of qdiscs that an import knows.

For each test the commands of its set-up and its command are read as a script. tc's exit status, as
the test expects it, is compared with whether the importer accepts the command. "not supported" is
neither: the command is valid, and a policy cannot say it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataplane.errors import ConfigError
from shaping.imports.form import Names
from shaping.imports.notes import Notes
from shaping.imports.tc import read_tc

KNOWN = ("netem", "tbf", "htb", "hfsc", "prio", "fifo", "pfifo_fast", "codel", "fq_codel", "fq",
         "cake", "sfq", "ingress")  # fmt: skip
VALUES = {"TC": "tc", "IP": "ip", "DUMMY": "dummy1", "DEV0": "v0p0", "DEV1": "v0p1", "DEV2": "eth1",
          "ETH": "eth0", "NS": "tcut", "BATCH_DIR": "/tmp"}  # fmt: skip


class Outcome(NamedTuple):
    """verdict: accepted, refused or not supported; why: the message"""

    verdict: str
    why: str


def command(text: str) -> str:
    return re.sub(r"\$(\w+)", lambda match: VALUES.get(match[1], match[0]), text)


def commands(steps: list[Any]) -> list[str]:
    """The tc commands of a set-up: texts, or lists of a text and exit statuses."""
    texts = [each[0] if isinstance(each, list) else each for each in steps if each]
    return [text for each in texts if (text := command(each)).startswith("tc ")]


def read(lines: list[str]) -> Outcome:
    notes = Notes()
    text = "\n".join(lines)
    try:
        draft = read_tc(text, "test", Names({}, "nic", notes))
        draft.check()
    except ConfigError as error:
        return Outcome("refused", str(error))
    refused = [each for each in notes.refused if each.where == f"test:{len(lines)}"]
    if refused:
        return Outcome("not supported", refused[0].text)
    return Outcome("accepted", "")


def main(argv: list[str]) -> int:
    if not argv:
        sys.exit(__doc__)
    names = argv[1:] or KNOWN
    total = same = 0
    unlike: list[str] = []
    print(f"{'file':<12}{'tests':>6}{'alike':>7}{'not supported':>15}{'unlike':>8}")
    for name in names:
        counts = {"alike": 0, "not supported": 0, "unlike": 0}
        tests = json.loads((Path(argv[0]) / f"{name}.json").read_text())
        for test in tests:
            line = command(test["cmdUnderTest"])
            before = commands(test.get("setup", []))
            if not line.startswith("tc "):
                continue
            outcome = read([*before, line])
            wanted = "accepted" if str(test["expExitCode"]) == "0" else "refused"
            if outcome.verdict == wanted:
                counts["alike"] += 1
            elif outcome.verdict == "not supported":
                counts["not supported"] += 1
                unlike.append(f"{name} {test['id']} not supported: {line}\n    {outcome.why}")
            else:
                counts["unlike"] += 1
                unlike.append(f"{name} {test['id']} {wanted} by tc, {outcome.verdict} here: {line}"
                              f"\n    {outcome.why or test['name']}")  # fmt: skip
        total += sum(counts.values())
        same += counts["alike"]
        print(f"{name:<12}{sum(counts.values()):>6}{counts['alike']:>7}"
              f"{counts['not supported']:>15}{counts['unlike']:>8}")  # fmt: skip
    print(f"{same} of {total} alike\n")
    print("\n".join(unlike))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
