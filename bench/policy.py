"""Changes of the policy of shaping under load: `rounds` different policies applied and undone, one
after the other, as `vnic shape apply` and `vnic shape undo` do it.

None of them loses or reorders a packet by what it says: rates and queues are large enough for the
load, delays keep the order, shares of losses are 0. So whatever is lost or overtaken is lost by the
change. Policies hold packets at the moment at which they are taken out: those with delays on their
way, those with rates in their queues. The first half of the rounds begins without a policy, the
second half with another one (BASE).
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable

from bench import machine
from bench.errors import BenchError
from bench.instance import Json
from bench.load import Loaded, changed, queue_drops, run_rounds, traffic
from bench.tap import rounded
from shaping.policy.load import load_policy, policy_data
from vnic.api.client import Client

HOLD_S = (0.03, 0.15)  # how long each policy stays: longer than its delays, so that lines are full
PAUSE_S = (0.02, 0.1)
SETTLE_NS = 200_000_000  # after a change, what is lost or late is still its effect

BASE: Json = {
    "links": {"a0 <-> b0": {"rate": "1gbit", "delay": "2ms"}},
    "classes": {
        "a1.egress": {
            "rate": "500mbit",
            "default": "rest",
            "tree": {"tcp": {"match": {"protocol": "tcp"}, "ceiling": "200mbit", "queue": {"time": "300ms"}}, "rest": {}},
        },
        "b0.ingress": {
            "rate": "2gbit",
            "default": "rest",
            "tree": {"numbers": {"match": {"protocol": "udp"}, "guarantee": "500mbit"}, "rest": {}},
        },
    },
}


def _rates(n: int) -> Json:
    """Of NICs and between NICs; the TCP stream waits in one of them."""
    return {
        "links": {
            "a0 <-> b0": {"rate": f"{1000 + n}mbit"},
            "a0": {"rate": f"{2000 + n}mbit", "queue": {"packets": 20_000}},
            "a1 -> b1": {"rate": f"{200 + n}mbit", "queue": "200ms"},
        }
    }


def _delays(n: int) -> Json:
    return {"links": {"a0 -> b0": {"delay": f"{1 + n % 5}.{n}ms"}, "a1 <-> b1": {"rtt": f"{4 + n}ms"}}}


def _jitter(n: int) -> Json:
    """Delays that vary, and keep the order."""
    shape = ("uniform", "normal", "pareto")[n % 3]
    return {
        "links": {
            "any -> b0": {"delay": {"mean": f"{2 + n % 4}ms", "jitter": "1ms", "shape": shape, "correlation": f"{n}%"}},
            "a1 -> any": {"delay": {"mean": "3ms", "jitter": "500us", "shape": shape}},
        }
    }


def _rates_and_delays(n: int) -> Json:
    return {
        "links": {
            "a0 -> any": {"rate": f"{800 + n}mbit", "delay": "3ms", "overhead": "ethernet"},
            "any -> b0": {"rate": f"{900 + n}mbit", "delay": {"mean": "2ms", "jitter": "200us"}},
            "a1 <-> b1": {"rate": f"{180 + n}mbit", "delay": "2ms", "queue": {"packets": 4000}},
        }
    }


def _losses(n: int) -> Json:
    """Of nothing: the elements are there."""
    nothing = {"loss": "0%", "duplicate": "0%", "corrupt": "0%"}
    return {"links": {"a0 <-> b0": nothing, "a1": {"loss": {"share": "0%", "burst": n + 1}}, "b0": {"reorder": "0%"}}}


def _classes(n: int) -> Json:
    """The datagrams in a class, or in that of all others; the TCP stream waits in a class."""
    queue = ("fifo", "fq", {"discipline": "fq_codel", "target": "100ms"})[n % 3]
    match = [{"protocol": "udp"}, {"destination_port": 1}][n % 2]
    tcp = {"match": {"protocol": "tcp"}, "queue": {"time": "300ms"}}
    return {
        "classes": {
            "a0.egress": {
                "rate": f"{1000 + n}mbit",
                "default": "rest",
                "tree": {"chosen": {"match": match, "guarantee": "300mbit", "queue": queue}, "rest": {"weight": 1 + n}},
            },
            "a1.egress": {
                "rate": f"{220 + n}mbit",
                "default": "rest",
                "tree": {"group": {"guarantee": "100mbit", "tree": {"tcp": tcp, "udp": {}}}, "rest": {"ceiling": "100mbit"}},
            },
        }
    }


def _one_class(n: int) -> Json:
    """For all that was in several."""
    rest = {"rest": {"queue": {"time": "300ms"}}}
    rates = {"a0": f"{1000 + n}mbit", "a1": f"{230 + n}mbit"}
    return {"classes": {f"{name}.egress": {"rate": rate, "default": "rest", "tree": rest} for name, rate in rates.items()}}


def _classes_and_lines(n: int) -> Json:
    """Classes in front of lines."""
    return {
        **_delays(n),
        "classes": {
            "b0.ingress": {
                "rate": f"{1000 + n}mbit",
                "default": "rest",
                "tree": {"numbers": {"match": {"sender": "a0"}, "weight": 1 + n, "queue": "fq"}, "rest": {}},
            }
        },
    }


def _steps(n: int) -> Json:
    """Rates that vary."""
    steps = [{"for": "20ms", "rate": f"{600 + n}mbit"}, {"for": "10ms", "rate": "300mbit"}]
    slower = [{"for": "30ms", "rate": f"{250 + n}mbit"}, {"for": "5ms", "rate": "0bit"}]
    return {
        "links": {
            "a0 -> any": {"trace": steps, "queue": {"packets": 4000}, "delay": "1ms"},
            "a1 -> any": {"trace": slower, "queue": {"packets": 4000}},
        }
    }


def _opportunities(n: int) -> Json:
    """A trace of a file: 1504 bytes at a time, many a millisecond. {} is its path."""
    return {"links": {"a0 -> b0": {"trace": "{}", "queue": {"packets": 4000}, "delay": f"{n}00us"}}}


def _scenario(n: int) -> Json:
    return {
        "links": {"a0 <-> b0": {"rate": f"{1000 + n}mbit", "delay": "1ms"}, "a1 -> any": {"rate": "250mbit"}},
        "scenario": [
            {"at": "10ms", "set": {"a0 -> b0": {"delay": "3ms"}, "a1 -> any": {"rate": "200mbit"}}},
            {"at": "20ms", "set": {"a0 -> b0": {"delay": "1ms"}}},
            {"at": "25ms", "ramp": {"a0 <-> b0": {"rate": "600mbit"}}, "over": "200ms"},
            {"at": "300ms", "repeat": True},
        ],
    }


def _shares(n: int) -> Json:
    return {"shares": {"uplink": {"capacity": f"{1000 + n}mbit", "a0": {"weight": 1 + n}, "a1": {"weight": 1}}}}


KINDS: tuple[Callable[[int], Json], ...] = (
    _rates, _delays, _jitter, _rates_and_delays, _losses, _classes, _one_class, _classes_and_lines, _steps, _opportunities,
    _scenario, _shares,
)  # fmt: skip


def _load(instance: Loaded, data: Json) -> Json:
    """The policy as `vnic shape apply` reads it from a file."""
    directory = instance.space.directory
    trace, file = directory / "line.trace", directory / "policy.yaml"
    if not trace.exists():
        trace.write_text("".join(f"{1 + number // 30}\n" for number in range(300)))  # 361 Mbit/s
    file.write_text(json.dumps({"version": 1, **data}).replace('"{}"', json.dumps(str(trace))))
    loaded: Json = policy_data(load_policy(file))
    return loaded


def _apply(instance: Loaded, data: Json, about: str) -> None:
    policy = _load(instance, data)
    with Client() as client:
        if not client.shape(policy, about=about)["changes"]:
            raise BenchError(f"{about}: nothing has changed")


def policies(rounds: int) -> Json:
    """Applies `rounds` different policies, and undoes each. Raises BenchError."""
    described = machine.describe()
    changes: list[tuple[int, str]] = []  # when they began, and what they were

    def act(instance: Loaded, number: int) -> Json:
        if number == (rounds + 1) // 2:
            changes.append((time.monotonic_ns(), "apply base"))
            _apply(instance, BASE, "base")
        kind = KINDS[number % len(KINDS)]
        data = kind(number // len(KINDS))
        running = instance.ask("ShapeStatus", whole=True)["status"]["policy"]
        begin_ns = time.monotonic_ns()
        _apply(instance, data, f"round {number + 1}")
        applied_ns = time.monotonic_ns()
        time.sleep(random.uniform(*HOLD_S))
        undo_ns = time.monotonic_ns()
        instance.ask("UndoShape")
        end_ns = time.monotonic_ns()
        what = f"{kind.__name__.strip('_')} on {'base' if running else 'nothing'}"
        changes.extend([(begin_ns, f"apply {what}"), (undo_ns, f"undo {what}")])
        if instance.ask("ShapeStatus", whole=True)["status"]["policy"] != running:
            raise BenchError(f"round {number + 1}: the policy was not undone")
        return {
            "apply_ms": rounded((applied_ns - begin_ns) / 1e6),
            "undo_ms": rounded((end_ns - undo_ns) / 1e6),
        }

    began_ns = time.monotonic_ns()
    reports, load, status, stats = run_rounds(rounds, PAUSE_S, act)
    return {
        "rounds": rounds,
        "applied_and_undone_a_minute": round(rounds * 60e9 / (time.monotonic_ns() - began_ns)),
        **traffic(load),
        "jumps": _jumps(load, changes),
        # Of those lost: packets that the kernel dropped, since an engine did not read the queue of
        # the datagrams' TAP soon enough; and those that their engine dropped for any reason.
        "sender_queue_drops": (queue_lost := queue_drops(stats, "a0")),
        "dropped": (dropped := status["engines"][0]["dropped"]),
        "unexplained": load["lost"] - load["overrun"] - queue_lost - dropped,
        "tcp_dropped": status["engines"][1]["dropped"],
        **changed(reports, status),
        "machine": described,
    }


def _jumps(load: Json, changes: list[tuple[int, str]]) -> Json:
    """After which changes datagrams came that were not the next."""
    found: Counter[str] = Counter()
    for at_ns, number, expected in load["jumps"]:
        what = "late" if number < expected else "lost or overtaken"
        made = [change for change in changes if change[0] <= at_ns <= change[0] + SETTLE_NS]
        found[f"{what} after {max(made)[1] if made else 'no change'}"] += 1
    return dict(found)
