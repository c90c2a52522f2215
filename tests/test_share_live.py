"""Shares on a running instance: rates follow what the containers send."""

import json

from tests.test_command import environment  # noqa: F401 - a fixture
from tests.test_handlers_traffic import until
from tests.test_shape_live import shaped  # noqa: F401 - a fixture

POLICY = """version: 1
shares:
  uplink: {capacity: 40mbit, a: {weight: 3}, b: {weight: 1}}
"""
BLAST = """
import socket, time
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + 60
while time.monotonic() < end:
    out.sendto(bytes(1200), ("10.99.0.1", 9))
    time.sleep(0.0002)
"""


def test_rates_follow_what_containers_send(shaped):  # noqa: F811
    shaped.policy.write_text(POLICY)
    said = shaped.shape("check", str(shaped.policy))
    assert "shares.uplink: a: 30mbit when all send" in said and "b: 10mbit when all send" in said
    shaped.shape("apply", str(shaped.policy))

    def rates():
        [share] = json.loads(shaped.shape("show", "--over", "1ms", "--json"))["shares"]
        found = {group["name"]: group["rate_bps"] for group in share["groups"]}
        assert share["capacity_bps"] == 40_000_000
        return found

    # the quiet one's rate goes to the one that sends, whose datagrams exceed what it may send
    sending = shaped.b.popen(["python3", "-c", BLAST])
    try:
        until(lambda: rates()["b"] > 35_000_000)
    finally:
        sending.kill()
        sending.wait()
    table = shaped.shape("show", "--over", "1ms")
    assert "uplink" in table and "may send" in table
    shaped.shape("clear")
    assert json.loads(shaped.shape("show", "--json", "--over", "1ms"))["lines"] == []
