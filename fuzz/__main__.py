"""Builds the fuzzers and runs them; see fuzz/__init__.py.

The build is a copy of the tree in build/fuzz, compiled by Clang with AddressSanitizer and counters
of code. Inputs that reach new code are kept in build/fuzz-corpus, so that the next run goes on; an
input that breaks a rule is stored beside them, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from fuzz.seeds import SEEDS
from fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build/fuzz"
PACKAGES = ("dataplane", "shaping", "switching")
CORPUS = ROOT / "build/fuzz-corpus"
INTERRUPTED = 72  # the exit status of libFuzzer after SIGINT
CLANGS = ("clang", *(f"clang-{version}" for version in range(21, 13, -1)))
# Of one input: the longest that the targets read. Longer ones cost time and reach nothing more.
LONGEST = {"rings": 160, "commands": 512, "messages": 512, "connection": 512}
# An input that takes as long hangs; the slowest take some milliseconds.
TIMEOUT_S = 20


def compiler() -> str:
    """The newest Clang here. Raises SystemExit."""
    for name in CLANGS:
        if shutil.which(name):
            return name
    raise SystemExit(
        "vnic: fuzz: there is no Clang, which has the fuzzer's engine: "
        "apt-get install clang-16 libclang-rt-16-dev"
    )


def build() -> Path:
    """The fuzzer's program, up to date."""
    clang, ccache = compiler(), shutil.which("ccache")
    variables = {
        **os.environ,
        "CC": f"{ccache} {clang}" if ccache else clang,
        "LDSHARED": f"{clang} -shared",  # what AddressSanitizer needs is in the program
    }
    command = [sys.executable, "scripts/checked.py", "fuzz", "--build-only"]
    subprocess.run(command, cwd=ROOT, env=variables, check=True)
    # modules that are not compiled for the fuzzers (setup.py) are those of `make build`
    for built in (each for package in PACKAGES for each in (ROOT / package).rglob("*.so")):
        there = TREE / built.relative_to(ROOT)
        if not there.exists():
            there.symlink_to(built)
    program = TREE / "fuzz/fuzzer"
    libraries = sysconfig.get_config_var("LIBDIR")
    command = [clang, "-O1", "-g", "-fsanitize=address,fuzzer", "-rdynamic", "-DVNIC_FUZZ"]
    command += ["-I", sysconfig.get_path("include"), "-I", "dataplane", "fuzz/main.c"]
    command += ["-o", str(program), f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    command += [f"-lpython{sysconfig.get_config_var('LDVERSION')}"]
    subprocess.run(command, cwd=TREE, check=True)
    return program


def write_seeds(target: str) -> Path:
    """The target's corpus, with the inputs of seeds.py in it."""
    corpus = CORPUS / target
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS[target].items():
        (corpus / f"seed-{name.replace(' ', '-')}").write_bytes(data)
    return corpus


def run(program: Path, target: str, seconds: int, inputs: list[str]) -> tuple[int, int]:
    """Fuzzes one target, or has it do given inputs; (exit status, executions)."""
    corpus = write_seeds(target)
    log = CORPUS / f"{target}.log"
    command = [str(program), "-print_final_stats=1", f"-timeout={TIMEOUT_S}"]
    if inputs:
        command += inputs
    else:
        command += [
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST[target]}",
            "-rss_limit_mb=4096",
            "-reload=0",
            "-len_control=0",
            f"-artifact_prefix={CORPUS}/{target}-",
            str(corpus),
        ]
    environment = {
        **os.environ,
        "VNIC_FUZZ_TARGET": target,
        "VNIC_FUZZ_PYTHON": sys.executable,
        "PYTHONPATH": str(TREE),
        "PYTHONHASHSEED": "0",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0"
        ":handle_sigbus=0:detect_stack_use_after_return=0",
    }
    with log.open("wb") as out:
        status = subprocess.run(command, cwd=TREE, env=environment, stderr=out).returncode
    text = log.read_text(errors="replace")
    done = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    if status == INTERRUPTED:
        status = 0
    if status:
        print("".join(text.splitlines(keepends=True)[-60:]), file=sys.stderr)
    return status, int(done[1]) if done else 0


def add_up(target: str, executions: int) -> int:
    """Executions of the target since its corpus was begun."""
    file = CORPUS / f"{target}.executions"
    total = executions + (int(file.read_text()) if file.exists() else 0)
    file.write_text(f"{total}\n")
    return total


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=", ".join(TARGETS), metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--input", action="append", default=[], help="do only this input (a file)")
    arguments = parser.parse_args()
    targets = arguments.target or list(TARGETS)
    for each in targets:
        if each not in TARGETS:
            parser.error(f"{each}: expected {', '.join(TARGETS)}")
    inputs = [str(Path(each).resolve()) for each in arguments.input]
    try:
        program = build()
    except subprocess.CalledProcessError:
        return 1  # the compiler has said why
    worst = 0
    for each in targets:
        seconds = max(1, arguments.seconds // len(targets))
        status, executions = run(program, each, seconds, inputs)
        total = add_up(each, executions)
        found = "a rule is broken" if status else "no rule broken"
        print(f"{each}: {executions:,} executions, {total:,} with those of earlier runs; {found}")
        worst = max(worst, status)
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
