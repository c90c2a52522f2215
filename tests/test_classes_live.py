"""Classes of a policy on a running instance: voice beside a flood, what `vnic shape show` says, changes live."""

import json
import sys

from tests.test_command import environment  # noqa: F401 - a fixture
from tests.test_handlers_traffic import until
from tests.test_shape_live import Shaped, shaped  # noqa: F401 - a fixture
from tests.test_supervisor import kill_worker

POLICY = """\
version: 1
classes:
  a.egress:
    rate: 4mbit
    default: bulk
    tree:
      voice: {match: {dscp: ef}, guarantee: 500kbit, priority: 0}
      bulk: {queue: {discipline: fifo, packets: 200}}
"""
# A datagram of 1000 bytes each time there is room: far more than the class may send.
FLOOD = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        s.sendto(bytes(1000), ("10.99.0.2", 9))
    except OSError:
        pass
"""


def rows(shaped: Shaped) -> dict:  # noqa: F811
    return {each["line"]: each for each in shaped.lines()}


def test_voice_passes_a_flood(shaped):  # noqa: F811
    shaped.policy.write_text(POLICY)
    shaped.shape("apply", str(shaped.policy))
    flood = shaped.a.popen([sys.executable, "-c", FLOOD])
    try:
        until(lambda: (rows(shaped)["a.egress/bulk"]["lost"] or 0) > 10)

        def trips(tos: str) -> list[float]:
            done = shaped.a.run("ping", "-Q", tos, "-c", "5", "-i", "0.05", "-W", "3", "10.99.0.2", check=False)
            return [float(line.rsplit("time=", 1)[1].split()[0]) for line in done.splitlines() if "time=" in line]

        voice, bulk = trips("0xb8"), trips("0")
        assert len(voice) == 5
        # 200 packets of 1042 bytes are 416 ms at 4 Mbit/s; voice waits for one of them
        assert min(voice) < 50 and all(each > 200 for each in bulk)
        found = {each["line"]: each for each in json.loads(shaped.shape("show", "--json"))["lines"]}
        assert found["a.egress/voice"]["kept"] == "yes" and found["a.egress"]["kept"] == "yes"
        assert found["a.egress/bulk"]["asked"] == "priority 4, fifo"
        promises = {(each["line"], each["promise"]): each for each in shaped.promises()}
        ceiling, guarantee = promises["a.egress", "ceiling"], promises["a.egress/voice", "guarantee"]
        assert ceiling["kept"] and ceiling["asked"] == "4mbit" and ceiling["reason"].startswith("packets waited")
        assert guarantee["kept"] and guarantee["asked"] == "500kbit"
        assert "~ classes.a.egress.rate: 4mbit -> 8mbit" in shaped.shape("set", "a.egress", "rate=8mbit")
        assert "classes.a.egress.tree.voice.guarantee" in shaped.shape("set", "a.egress/voice", "guarantee=1mbit")
        assert "there is no class voize; did you mean 'voice'?" in shaped.shape("set", "a.egress/voize", "weight=2", status=2)
        assert "vnic: error" in shaped.shape("set", "a.egress/voice", "guarantee=9mbit", status=2)
        assert rows(shaped)["a.egress/voice"]["asked"] == "guarantee 1mbit, priority 0, fifo"
        kill_worker(shaped.environment)
        until(lambda: (rows(shaped)["a.egress/bulk"]["packets"] or 0) > 0)
        assert rows(shaped)["a.egress"]["asked"] == "rate 8mbit"
    finally:
        flood.kill()
        flood.wait()
    assert "gone" in shaped.shape("clear")
    assert shaped.elements() == []
