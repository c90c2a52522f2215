"""The command: fast help, errors of one line, exit statuses, tables and JSON."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dataplane.engine.cgroup import Hierarchy
from dataplane.errors import ConfigError, VnicError
from vnic.cli import capture, show
from vnic.cli.main import COMMANDS, cli
from vnic.daemon import doctor

pytestmark = pytest.mark.commands


TREE = Path(__file__).parents[1]
VNIC = [sys.executable, "-m", "vnic.cli.main"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """For processes of the command: their own runtime directory, and the fake runtime."""
    path = tmp_path_factory.mktemp("cli")
    path.chmod(0o700)
    paths = os.pathsep.join([str(TREE), str(TREE / "tests" / "fake_site")])
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VNIC_")}
    return {**kept, "PYTHONPATH": paths, "VNIC_RUNTIME_DIR": str(path)}


def run(environment, *words, **options):
    return subprocess.run([*VNIC, *words], env=environment, cwd=TREE, capture_output=True, text=True, timeout=120, **options)


def invoke(*words, **environment):
    return CliRunner(env={"VNIC_DEBUG": "0", **environment}).invoke(cli, words)


def assert_error(result, status, says):
    error = result.stderr
    assert error.startswith("vnic: error: "), error
    assert error.count("\n") == 1, error
    assert says in error, error
    assert (result.exit_code if hasattr(result, "exit_code") else result.returncode) == status


# -- help ------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from vnic.cli.main import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'rich', 'pyroute2', 'msgspec', 'yaml', 'asyncio', 'json', 'subprocess', 'ipaddress', 'vnic.cli.show'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name}" in done.stdout for name, (_, line) in COMMANDS.items() if line)


def all_commands(group=cli, path=()):
    context = click.Context(group, info_name="vnic")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))


@pytest.mark.parametrize("path", [(), *all_commands()], ids=" ".join)
def test_every_help_fits_a_screen_and_has_an_example(path):
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= (60 if path == ("replay",) else 42)
    assert path == ("attach",) or f"  vnic {' '.join(path)}" in result.output
    short = {"--help", "-h"}
    assert invoke(*path, short.pop()).output == invoke(*path, short.pop()).output


def test_what_the_overview_says_matches_the_commands():
    context = click.Context(cli)
    for name in COMMANDS:
        assert cli.get_command(context, name).name == name


def test_version():
    assert invoke("--version").output.startswith("vnic ")


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "says"), [
    (["stauts"], "unknown command 'stauts'; did you mean 'stats'?"),
    (["fly"], "expected one of demo, up, down"),
    (["--fast"], "--fast"),
    (["up"], "FILE.yaml"),
    (["up", "absent.yaml"], "absent.yaml: No such file"),
    (["rate", "web", "--egress"], "requires an argument. (see 'vnic rate --help')"),
    (["attach", "tap", "web", "--pid"], "requires an argument. (see 'vnic attach tap --help')"),
    (["link", "web", "sideways"], "'sideways' is not one of 'up', 'down'"),
    (["attach", "tap", "web"], "give --pid PID or --netns PATH"),
    (["attach", "tap", "web", "--pid", "1", "--netns", "x"], "give --pid"),
    (["attach", "tap", "web", "--pid", "one"], "'one' is not a valid integer"),
    (["attach", "vm", "web"], "vm"),
    (["status", "-i", "../x"], "instance '../x': expected a name"),
    (["demo", "--rate", "1gbps"], "write 1gbit"),
    (["demo", "--queues", "0"], "--queues"),
    (["config", "check"], "FILE.yaml"),
    (["stats", "--watch", "1ms"], "--watch 1ms: expected 10ms to 1h"),
    (["demo", "--seconds", "nan"], "nan is not in the range 0.2<=x<=600"),
    (["capture", "web", "-w", "x", "-d", "inf"], "inf is not in the range"),
])  # fmt: skip
def test_wrong_use_gets_one_line_and_status_2(words, says):
    assert_error(invoke(*words), 2, says)


def test_a_module_that_is_not_there_is_not_right(tmp_path):
    (tmp_path / "net.yaml").write_text("modules:\n- {module: no_such:Module}")
    assert_error(invoke("config", "check", str(tmp_path / "net.yaml")), 2, "module no_such:Module: cannot import no_such")


@pytest.mark.parametrize("words", [[], ["config"], ["attach"]], ids=" ".join)
def test_no_command_gets_the_help_and_status_2(words):
    result = invoke(*words)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Usage: ") and "\nCommands:\n" in result.stderr


@pytest.mark.parametrize(("text", "says"), [
    ("nisc: {}", ":1: nisc: unknown key; did you mean 'nics'?"),
    ("nics:\n  web: {pid: 1, mac: 02:zz:00:00:00:01}", ":2: nics.web.mac: '02:zz:00:00:00:01' is not a MAC address"),
    ("nics:\n  web: {pid: 1, queues: 0}", ":2: nics.web.queues: invalid value 0: expected 1 to 64 queue pairs"),
    ("nics:\n  web: {pid: 1, mtu: 65522}", ":2: nics.web.mtu: invalid value 65522: expected an MTU of 68 to 65521 bytes"),
    ("nics:\n  web:\n   - {", "no YAML"),
])  # fmt: skip
@pytest.mark.parametrize("command", [["config", "check"], ["up"]], ids=" ".join)
def test_a_wrong_file_gets_one_line_and_status_2(tmp_path, command, text, says):
    path = tmp_path / "net.yaml"
    path.write_text(text)
    result = invoke(*command, str(path), VNIC_RUNTIME_DIR=str(tmp_path))
    assert_error(result, 2, says)
    assert str(path) in result.stderr


@pytest.mark.parametrize("command", [["config", "check", "--for", "containers"], ["up"]], ids=" ".join)
def test_a_nic_without_a_container_is_for_replay_only(tmp_path, command):
    path = tmp_path / "net.yaml"
    path.write_text("nics:\n  web: {}")
    result = invoke(*command, str(path), VNIC_RUNTIME_DIR=str(tmp_path))
    assert_error(result, 2, f"{path}:2: nics.web: which container is it in?")
    assert "fits replay only: web" in invoke("config", "check", str(path)).output
    path.write_text("nics:\n  vm: {kind: vhost-user, listen: vm.sock}")
    assert "fits" not in invoke("config", "check", str(path)).output


def test_nothing_runs(tmp_path):
    tmp_path.chmod(0o700)
    for words in (["status"], ["stats"], ["graph"], ["down"], ["detach", "web"], ["link", "web", "up"]):
        result = invoke(*words, "-i", "lab", VNIC_RUNTIME_DIR=str(tmp_path))
        assert_error(result, 1, "instance lab does not run; start it with 'vnic up -i lab FILE.yaml'")


def test_debug_adds_the_traceback():
    assert "Traceback" in invoke("up", "absent.yaml", VNIC_DEBUG="1").stderr
    assert "Traceback" not in invoke("up", "absent.yaml").stderr


@pytest.mark.parametrize(("raised", "status", "says"), [
    (KeyboardInterrupt(), 130, ""), (RuntimeError("odd\nthing"), 1, "unexpected RuntimeError: odd thing; VNIC_DEBUG=1"),
    (OSError(28, "No space left on device"), 1, "No space left"),
])  # fmt: skip
def test_whatever_happens_there_is_no_traceback(monkeypatch, raised, status, says):
    def fail():
        raise raised

    monkeypatch.setattr(doctor, "examine", fail)
    result = invoke("doctor")
    assert result.exit_code == status
    assert says in result.stderr
    assert result.stderr.strip().count("\n") == 0


# -- a running instance ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(environment, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.yaml"
    path.write_text("nics:\n  web: {pid: 1, egress: {rate: 10mbit}}\n")
    done = run(environment, "up", "-d", str(path))
    assert done.returncode == 0, done.stderr
    yield done.stdout
    assert run(environment, "down").returncode == 0
    left = {each.name for each in Path(environment["VNIC_RUNTIME_DIR"]).iterdir()}
    assert {each for each in left if each.startswith("default")} == {"default.log"}


def test_up_returns_when_it_is_up(environment, running, tmp_path):
    found = json.loads(run(environment, "status", "--json").stdout)
    assert running.startswith(f"instance default is up (pid {found['supervisor']['pid']}); its log is ")
    assert [nic["name"] for nic in found["nics"]] == ["web"]
    (tmp_path / "net.yaml").write_text("engines: 1")
    for detach in (["-d"], []):
        assert_error(
            run(environment, "up", *detach, str(tmp_path / "net.yaml")),
            2,
            f"runs already (pid {found['supervisor']['pid']}); stop it",
        )


@pytest.mark.parametrize(("pid", "status", "says"), [
    (4_000_000, 2, "pid 4000000 does not exist"), (4_000_002, 1, "the TAP broke"), (4_000_001, 1, "unexpected ZeroDivisionError: a bug"),
])  # fmt: skip
@pytest.mark.parametrize("detach", [[], ["-d"]], ids=["foreground", "detached"])
def test_what_does_not_come_up_says_why_and_leaves_nothing(environment, tmp_path, detach, pid, status, says):
    path = tmp_path / "net.yaml"
    path.write_text(f"nics: {{web: {{pid: {pid}}}}}")
    done = run(environment, "up", "-i", "broken", *detach, str(path))
    assert_error(done, status, says)
    assert {each.suffix for each in Path(environment["VNIC_RUNTIME_DIR"]).glob("broken*")} <= {".log"}


def test_tables_and_json(environment, running):
    text = run(environment, "status").stdout
    assert "every one is accounted for" in text
    assert "10mbit" in text
    assert "pid 1" in text
    assert " 0 addresses learned\n" in text
    text = run(environment, "stats", "web").stdout
    assert "2 queue full" in text
    assert "wire packets" in text and "web: the container sent 3 packets that its queues had no room for\n" in text
    assert json.loads(run(environment, "stats", "--json").stdout)["engines"][0]["elements"][0]["dropped"] == {"queue full": 2}
    assert run(environment, "graph").stdout == "a -> b\n"
    assert run(environment, "graph", "--dot").stdout == "digraph vnic {}\n"
    assert json.loads(run(environment, "graph", "--json").stdout) == {}
    assert_error(run(environment, "stats", "nobody"), 2, "nic nobody: is not attached")


def test_a_nic_by_hand(environment, running):
    words = [
        "attach",
        "tap",
        "db",
        "--pid",
        "1",
        "--queues",
        "3",
        "--mtu",
        "9000",
        "--address",
        "10.0.0.2/24",
        "--egress",
        "5mbit",
    ]
    assert run(environment, *words).stdout.startswith("db: db with ")
    assert run(environment, "rate", "db", "--egress", "none", "--ingress", "2.5gbit").returncode == 0
    assert run(environment, "rate", "db").stdout == "egress  none\ningress 2.5gbit\n"
    rates = {
        "name": "db",
        "egress_bps": None,
        "egress_queue_bytes": None,
        "ingress_bps": 2_500_000_000,
        "ingress_queue_bytes": None,
    }
    assert json.loads(run(environment, "rate", "db", "--json").stdout) == rates
    assert_error(run(environment, "rate", "nobody"), 2, "nic nobody: is not attached; attached: web, db")
    assert run(environment, "link", "db", "down").returncode == 0
    db = json.loads(run(environment, "status", "--json").stdout)["nics"][1]
    assert (db["queues"], db["mtu"], db["egress_bps"], db["ingress_bps"], db["link"]) == (3, 9000, None, 2_500_000_000, "down")
    assert run(environment, "detach", "db").returncode == 0
    assert_error(run(environment, "detach", "db"), 2, "not attached")
    assert_error(run(environment, "attach", "tap", "x", "--pid", "1", "--mtu", "70000"), 2, "x.mtu: invalid value 70000")
    assert_error(run(environment, "attach", "tap", "x", "--pid", "1", "--mac", "1"), 2, "x.mac: '1' is not a MAC address")
    assert_error(run(environment, "rate", "web", "--egress", "1gbps"), 2, "write 1gbit")


def test_a_reader_that_goes_away_is_no_error(environment, running):
    command = [*VNIC, "status", "--json"]
    with subprocess.Popen(command, env=environment, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_in_the_foreground_ends_with_status_0(environment, tmp_path, number):
    (tmp_path / "net.yaml").write_text("engines: 1")
    command = [*VNIC, "up", "-i", "foreground", str(tmp_path / "net.yaml")]
    with subprocess.Popen(command, env=environment, cwd=TREE, stderr=subprocess.PIPE, text=True) as process:
        assert "instance foreground is up" in process.stderr.readline()
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()
    assert not list(Path(environment["VNIC_RUNTIME_DIR"]).glob("foreground*"))


# -- config, completion, doctor --------------------------------------------------------------------


def test_config_check_and_schema(tmp_path):
    path = tmp_path / "net.yaml"
    path.write_text("nics: {web: {pid: 1, egress: {rate: 1000kbit}}}")
    assert invoke("config", "check", str(path)).output == f"{path}: valid; 1 NIC on 1 engine\n"
    assert json.loads(invoke("config", "check", "--json", str(path)).output)["nics"]["web"]["egress"]["rate"] == "1mbit"
    assert json.loads(invoke("config", "schema").output)["$defs"]["NicConfig"]["properties"]["queues"]["maximum"] == 64


def test_config_check_looks_for_elements(tmp_path):
    path = tmp_path / "net.yaml"
    (tmp_path / "mine_for_check.py").write_text("from dataplane.graph.element import PyElement\nclass Mine(PyElement): pass\n")
    text = "nics:\n  web:\n    pid: 1\n    egress:\n      elements:\n        - Counter\n        - element: {}\n"
    path.write_text(text.format("mine_for_check:Mine"))
    assert invoke("config", "check", str(path)).exit_code == 0
    for reference in ("Countr", "mine_for_check:Yours", "absent_module:Mine"):
        path.write_text(text.format(reference))
        assert_error(invoke("config", "check", str(path)), 2, f"{path}:7: element {reference}: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    assert "_VNIC_COMPLETE" in invoke("completion", shell).output


SHORT = (
    "nics: {web: {pid: 1, egress: {rate: 100kbit, queue: 20ms}}, db: {pid: 1, mtu: 9000, ingress: {rate: 10mbit, queue: 10ms}}}"
)


def test_a_queue_shorter_than_a_frame_is_said(tmp_path):
    (tmp_path / "net.yaml").write_text(SHORT)
    result = invoke("config", "check", str(tmp_path / "net.yaml"))
    assert result.exit_code == 0
    assert result.stderr == (
        f"vnic: warning: {tmp_path}/net.yaml:1: nic web: egress: queue 20ms at 100kbit is 250 bytes, less than one frame of 1514; "
        "one frame waits all the same, up to 121.12ms\n"
    )


def test_up_reads_standard_input_and_warns(environment):
    done = run(environment, "up", "-d", "-i", "from-stdin", "-", input=SHORT)
    assert done.returncode == 0, done.stderr
    try:
        assert len(json.loads(run(environment, "status", "-i", "from-stdin", "--json").stdout)["nics"]) == 2
    finally:
        assert run(environment, "down", "-i", "from-stdin").returncode == 0
    log = (Path(environment["VNIC_RUNTIME_DIR"]) / "from-stdin.log").read_text()
    assert "WARNING <stdin>:1: nic web: egress: queue 20ms at 100kbit is 250 bytes" in log
    assert_error(run(environment, "up", "-", input="nics: {"), 2, "<stdin>:1: no YAML")


def completed(environment, *words):
    """The shell's completions of the last word."""
    line = {"_VNIC_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["vnic", *words]), "COMP_CWORD": str(len(words))}
    return [each.removeprefix("plain,") for each in run({**environment, **line}).stdout.split()]


def test_completion_of_names(environment, running):
    assert completed(environment, "rate", "w") == ["web"]
    assert completed(environment, "detach", "x") == []
    assert completed(environment, "status", "-i", "de") == ["default"]
    for words in (["rate", "w"], ["handler", "x"], ["group", "d"]):
        assert completed({**environment, "VNIC_INSTANCE": "absent"}, *words) == []
    done = run({**environment, "_VNIC_COMPLETE": "bash_complete", "COMP_WORDS": "vnic group d", "COMP_CWORD": "2"})
    assert done.stderr == ""  # this daemon has no groups: silently none


def test_an_event_says_that_a_rate_is_lifted():
    event = {"event": "rate", "time": 0.25, "nic": "web", "egress_bps": None, "ingress_bps": 5_000_000}
    assert show._event_line(event).split()[1:] == ["rate", "nic=web", "egress=none", "ingress=5mbit"]


def test_a_table_is_narrow_in_a_pipe_and_breaks_no_name(capsys):
    """A NIC and its shaper after some time: at most 100 columns; delays in ms, their mean and
    maximum."""
    counters = {"passed": 15, "delayed": 8283, "split": 2997, "sent_bytes": 12521783, "queue_bytes": 1514, "queue_bytes_max": 137922,
                "sojourn_max_ns": 112762589, "sojourn_ns": 132709988145}  # fmt: skip
    dropped = {"queue_full": 18, "no_buffer": 1, "released": 0}
    shaper = {"name": "database.egress.rate", "type": "Shaper", "packets": 15757, "held": 1, "dropped": dropped,
              "counters": counters, "queue_limit_bytes": 25000}  # fmt: skip
    queue = {f"{way}_{what}": 12_345_678_901 for way in ("rx", "tx") for what in show.QUEUE_COLUMNS}
    show._show_stats({"nics": [{"name": "database", "queues": [queue]}], "engines": [{"name": "e0", "elements": [shaper]}]})
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    text = " ".join(" ".join(lines).split())
    assert "wire packets wire bytes dropped" in text
    assert "18 queue_full" in text and "queue 1514 of 25000 bytes" in text and "delay mean" in text
    assert "15.993 ms" in text and "max 112.763 ms" in text and "sojourn" not in text


def test_what_cannot_be_written_is_named():
    reading, writing = os.pipe()
    os.write(writing, bytes(100))
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(VnicError, match="^cannot write /dev/full: No space left on device$"):
            capture._copy(reading, (full, "/dev/full"), None, None, None)
    finally:
        for descriptor in (reading, writing, full):
            os.close(descriptor)


def test_stats_have_one_shape(environment, running):
    once = json.loads(run(environment, "stats", "--json").stdout)
    with subprocess.Popen(
        [sys.executable, "-m", "vnic.cli.main", "stats", "--watch", "10ms", "--json"],
        env=environment, cwd=TREE, stdout=subprocess.PIPE,
    ) as watching:  # fmt: skip
        assert watching.stdout is not None
        line = json.loads(watching.stdout.readline())
        watching.terminate()
    assert list(once) == list(line) == ["time", "nics", "engines"]


def test_completion_completes(environment):
    asked = {**environment, "_VNIC_COMPLETE": "bash_complete", "COMP_WORDS": "vnic st", "COMP_CWORD": "1"}
    assert run(asked).stdout.split() == ["plain,status", "plain,stats"]


def test_doctor():
    result = invoke("doctor", "--json")
    report = json.loads(result.stdout)
    names = {each["name"] for each in report["checks"]}
    assert {
        "kernel",
        "tun device",
        "user namespaces",
        "tap",
        "memfd",
        "CPUs",
        "cgroups",
        "open files",
        "optional tools",
    } <= names
    assert result.exit_code == (0 if report["ok"] else 1)
    assert all(each["ok"] or each["remedy"] for each in report["checks"])
    assert report["ok"] == all(each["ok"] for each in report["checks"] if each["needed"])


def test_doctor_on_cgroups(monkeypatch, tmp_path):
    v1, v2 = Hierarchy(1, ("cpuacct",), "/nowhere", (0, 1)), Hierarchy(2, ("cpu", "io"), str(tmp_path), (0, 2))
    monkeypatch.setattr(doctor, "hierarchies", lambda: [v1, v2, Hierarchy(1, ("pids",), str(tmp_path), (0, 3))])
    found = doctor._cgroups()
    assert not found.ok and found.found.startswith("none can be made and joined: v1 in /nowhere (charges CPU time), v2 in ")
    (tmp_path / "cgroup.procs").write_text("")
    assert doctor._cgroups().found == f"can be made and joined: v2 in {tmp_path} (charges and bounds CPU time)"
    monkeypatch.setattr(doctor, "hierarchies", list)
    assert doctor._cgroups().found == "no hierarchy that charges or bounds CPU time is mounted" and doctor._cgroups().remedy


def test_doctor_says_what_is_missing(monkeypatch):
    trial = {"user": "Operation not permitted", "net": "Operation not permitted"}
    monkeypatch.setattr(doctor, "_try_namespaces", lambda: trial)
    monkeypatch.setattr(doctor.platform, "release", lambda: "4.19.0")
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "FAIL  kernel: Linux 4.19.0\n      vnic needs Linux 5.10 or newer" in result.stdout
    assert "FAIL  tap: no network namespace can be made" in result.stdout


def test_what_others_say_gives_a_terminal_no_commands(capsys):
    from vnic.cli.common import print_table
    from vnic.cli.main import explain

    evil = "a\x1b[31mb\u202ec"
    assert explain(ConfigError(f"{evil}\nd")) == ("a\\x1b[31mb\\u202ec d", 2)
    print_table(["name"], [[evil], ["two\nlines"]])
    assert (
        "a\\x1b[31mb\\u202ec" in (printed := capsys.readouterr().out)
        and "\x1b" not in printed
        and "lines\n" in printed.replace(" ", "")
    )
