"""What `vnic shape check` foretells, and what Linux' TCP reaches over two containers: goodput and round trips
are within the bounds that it printed."""

import itertools
import json
from pathlib import Path

import pytest

from tests.support.transfers import Transfer, end, flood, iperf3, kernel_tcp, waited_ns
from tests.test_command import environment, vnic  # noqa: F401 - a fixture
from tests.test_shape_live import Shaped, shaped  # noqa: F401 - a fixture
from tests.test_supervisor import status
from tests.tools import need

pytestmark = pytest.mark.timing
LTE = Path(__file__).parent.parent / "examples" / "shaping" / "lte.down"
STALLED = 0.05  # of the time, in which the engine had work and no processor: a bound may be missed
ATTEMPTS = 8  # while the machine is stalled
LATE = 0.01  # of the time: iperf3 begins its count when it runs, after the first packets
STAMP_NS = 10**6  # after losses, the kernel measures round trips by TCP's timestamps, in milliseconds
CLASSES = """\
classes:
  a.egress:
    rate: 20mbit
    default: bulk
    tree:
      gold: {match: {protocol: tcp}, guarantee: 8mbit, queue: QUEUE}
      bulk: {}
"""
# policy: (text, the place that is foretold, the times in seconds that count, the flood)
POLICIES = {
    "10mbit": ("links:\n  a -> any: {rate: 10mbit}\n", "a -> any", (0, 5), None),
    "50mbit": ("links:\n  a <-> b: {rate: 50mbit, rtt: 40ms}\n", "a -> b", (0, 6), None),
    "100mbit": ("links:\n  a -> any: {rate: 100mbit, queue: 20ms}\n", "a -> any", (0, 5), None),
    "vdsl": ("links:\n  a -> b: {rate: 20mbit, overhead: pppoe-ptm, queue: 40ms}\n  a <-> b: {rtt: 20ms}\n", "a -> b", (0, 5), None),
    # in the first two seconds the window shrinks to what losses allow
    "loss": ("seed: 1\nlinks:\n  a <-> b: {rtt: 20ms}\n  a -> b: {loss: 1%}\n", "a -> b", (2, 12), None),
    "classes": (CLASSES.replace("QUEUE", "fifo"), "a.egress/gold", (0, 5), "30M"),
    "codel": (f"links:\n  a <-> b: {{rtt: 20ms}}\n{CLASSES.replace('QUEUE', 'fq_codel')}", "a.egress/gold", (0, 6), "30M"),
    "trace": (f"links:\n  a -> any: {{trace: {LTE}, queue: {{packets: 500}}}}\n  a <-> b: {{rtt: 60ms}}\n", "a -> b", (0, 20), None),
}  # fmt: skip
PORTS = itertools.count(5201)
CASES = [(name, how) for name in POLICIES for how in (kernel_tcp, iperf3) if (name, how) != ("trace", iperf3)]


def forecast(shaped: Shaped, place: str) -> dict:  # noqa: F811
    found = json.loads(shaped.shape("check", str(shaped.policy), "--json"))
    assert found["ok"]
    return {each["place"]: each for each in found["forecasts"]}[place]


def figures(found: Transfer, goodput: float, foretold: dict, stalled: float) -> str:
    rtts = f"round trip {found.rtt_least_ns / 1e6:.4g} at least, {found.rtt_mean_ns / 1e6:.4g} ms on average"
    return f"goodput {goodput / 1e6:.4g} Mbit/s, {rtts}; foretold: {foretold}; no processor for {stalled:.1%} of the time"


@pytest.mark.parametrize(("name", "how"), CASES, ids=[f"{name}-{how.__name__}" for name, how in CASES])
def test_tcp_is_within_what_was_foretold(shaped, name, how):  # noqa: F811
    need("iperf3")
    text, place, (begin, until), rate = POLICIES[name]
    shaped.policy.write_text(f"version: 1\n{text}")
    foretold = forecast(shaped, place)
    shaped.shape("apply", str(shaped.policy))
    (least, most), (shortest, longest) = foretold["goodput_bps"], foretold["rtt_ns"]
    worker = status(shaped.environment)["pid"]
    flooding = flood(shaped.a, shaped.b, "10.99.0.2", next(PORTS), rate) if rate else []
    try:
        for _ in range(ATTEMPTS):
            before = waited_ns(worker)
            found: Transfer = how(shaped.a, shaped.b, "10.99.0.2", next(PORTS), until + 1)
            stalled = (waited_ns(worker) - before) / (until + 1) / 1e9
            goodput = found.goodput_bps(begin, until)
            said = figures(found, goodput, foretold, stalled)
            # No machine makes a line faster.
            assert found.rtt_least_ns >= shortest - STAMP_NS, said
            assert goodput <= most * (1 + (LATE if how is iperf3 else 0)), said
            if goodput >= least and found.rtt_mean_ns <= longest:
                break
            assert stalled > STALLED, said
        else:
            pytest.fail(said)
    finally:
        end(flooding)
