"""What one TCP connection reaches, as bounds: for congestion control that takes each loss for
congestion, CUBIC (RFC 9438) or Reno (RFC 5681), on hosts with Linux' defaults. BBR does not, and
is not bounded by losses.

Published models give a mean window for losses that are evenly spaced, or independent; simulations
of both (tests/test_forecast.py) and Linux' own CUBIC (tests/test_forecast_live.py) stay within what
is foretold here.
"""

from __future__ import annotations

import math

SECOND = 10**9
# Of 1500 bytes, less the headers of IPv4 (20), TCP (20) and the timestamps (12); of an
# acknowledgement nothing else is in the frame.
SEGMENT_BYTES, ACK_BYTES = 1448, 66

# Simulated independent losses give up to 17 % more than evenly spaced ones, which the formulas are
# for.
INDEPENDENT = 1.2
# The window of Reno in segments, times sqrt(p): Mathis et al., "The macroscopic behavior of the TCP
# congestion avoidance algorithm", 1997.
RENO = math.sqrt(3 / 2)
# The window of CUBIC, divided by (RTT / p)^0.75: RFC 9438, section 5.1, with C = 0.4.
BETA = 0.7
CUBIC = math.pow(0.4 * (3 + BETA) / (4 * (1 - BETA)), 0.25)

# Of the lower bounds: for the beginning and recoveries, and for chance, over 100 losses or more.
RATE_REACHED, LOSS_REACHED = 0.9, 0.8
TIMEOUT_LEAST_NS = SECOND // 5  # of a retransmission, in Linux; RFC 6298 asks for 1 s
TIMEOUT_BURST, WINDOW_LOST = 2, 0.001  # see least_by_loss
WINDOW_BYTES = 2 << 20  # payload under way: half of the 4 MiB that Linux' tcp_wmem allows
SENT_AT_ONCE = 10  # segments, RFC 6928: what comes to a queue in one burst
HOSTS_NS = 10_000_000  # what hosts add to a mean round trip: wake-ups, delayed acknowledgements


def most_by_loss(rtt_ns: float, events: float) -> float:
    """The upper bound in bit/s of payload. rtt_ns: the shortest round trip; events: bursts of
    losses for each packet. Infinite without losses, or without a round trip time."""
    if not events or not rtt_ns:
        return math.inf
    rtt = rtt_ns / SECOND
    window = max(RENO / math.sqrt(events), CUBIC * math.pow(rtt / events, 0.75))
    return INDEPENDENT * window * SEGMENT_BYTES * 8 / rtt


def least_by_loss(rtt_ns: float, events: float, burst: float) -> float:
    """The lower bound in bit/s of payload. rtt_ns: the longest mean round trip; burst: packets lost
    in a row, on average.

    The rate of Reno with timeouts and delayed acknowledgements (RFC 5348, section 3.1, with b = 2).
    0 where bursts often take a whole window. A timeout then sends one packet, each next one after
    twice the time, and each is lost with a probability of 1 - 1 / burst: with bursts of 2 or more,
    the mean time that this takes has no bound.
    """
    if not events:
        return math.inf
    if burst >= TIMEOUT_BURST:
        window = RENO / math.sqrt(events) / 2  # after a loss
        if math.pow(1 - 1 / burst, window) > WINDOW_LOST:
            return 0.0
    rtt, b = rtt_ns / SECOND, 2
    timeout = (rtt_ns + TIMEOUT_LEAST_NS) / SECOND
    lost = min(1.0, 3 * math.sqrt(3 * b * events / 8)) * events * (1 + 32 * events**2)
    time = rtt * math.sqrt(2 * b * events / 3) + timeout * lost
    return LOSS_REACHED * SEGMENT_BYTES * 8 / time


def least_by_windows(rtt_ns: float) -> float:
    """The lower bound in bit/s of payload that the hosts' buffers leave. rtt_ns: the longest round
    trip without queues."""
    return WINDOW_BYTES * 8 * SECOND / max(rtt_ns, 1)


def filled(queue_packets: float, underway_packets: float) -> float:
    """The share of a line's rate that is used at least, with a queue that drops what does not fit.

    CUBIC reduces its window, which was what is under way and the queue, to 0.7 of it: the line
    stays busy if the queue is (1 / 0.7 - 1) of what is under way. Below that, in proportion.
    """
    return min(1.0, queue_packets / queue_needed(underway_packets))


def queue_needed(underway_packets: float) -> float:
    """The packets of a queue with which the line stays busy, see `filled`."""
    return (1 / BETA - 1) * (underway_packets + SENT_AT_ONCE)
