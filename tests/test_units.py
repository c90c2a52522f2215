"""Units: exact conversion of text to numbers and back."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.errors import ConfigError
from dataplane.units import LIMIT, format_rate, format_size, format_time, parse_rate, parse_size, parse_time

KINDS = {"rate": (parse_rate, format_rate), "size": (parse_size, format_size), "time": (parse_time, format_time)}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("10mbit", 10_000_000),
        ("1gbit", 10**9),
        ("2.5gbit", 2_500_000_000),
        ("800kbit", 800_000),
        ("1Mbit", 10**6),
        ("7bit", 7),
        ("1.5kbit", 1500),
        ("1kibit", 1024),
        (" 3 mibit ", 3 << 20),
        ("0", 0),
        (0, 0),
        (".5kbit", 500),
    ],
)
def test_rates(text, want):
    assert parse_rate(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("64kb", 65536),
        ("64kib", 65536),
        ("64k", 65536),
        ("1500b", 1500),
        ("1.5kb", 1536),
        ("2mb", 2 << 20),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes_count_in_1024_as_in_tc(text, want):
    assert parse_size(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("250us", 250_000),
        ("5ms", 5_000_000),
        ("1s", 10**9),
        ("17ns", 17),
        ("0.5us", 500),
        ("300s", 300 * 10**9),
        ("2min", 120 * 10**9),
        ("10usecs", 10_000),
    ],
)
def test_times(text, want):
    assert parse_time(text) == want


@pytest.mark.parametrize(("parse", "text", "says"), [
    (parse_rate, "1gbps", "write 1gbit"),
    (parse_rate, "10MBps", "write 10mbit"),
    (parse_rate, "10Mb/s", "write 10mbit"),
    (parse_rate, "10bps", "write 10bit"),
    (parse_rate, "10M", "write 10mbit"),
    (parse_rate, "100", "no unit: expected a number with one, such as 100mbit"),
    (parse_rate, 100, "no unit"),
    (parse_rate, "fast", "100mbit"),
    (parse_rate, "", "100mbit"),
    (parse_rate, "-1mbit", "100mbit"),
    (parse_rate, "1e3mbit", "expected a number"),
    (parse_rate, "0.3bit", "whole number"),
    (parse_rate, "9223372036854775808bit", "too large"),
    (parse_rate, "1" * 5000 + "bit", "100mbit"),
    (parse_rate, "\u0661mbit", "100mbit"),
    (parse_rate, True, "100mbit"),
    (parse_rate, None, "100mbit"),
    (parse_rate, [1], "100mbit"),
    (parse_size, "64kbit", "in bytes"),
    (parse_size, "0.1kb", "whole number"),
    (parse_size, "64", "64kb"),
    (parse_time, "5", "such as 250us"),
    (parse_time, "5 fortnights", "expected one of"),
])  # fmt: skip
def test_what_is_wrong_says_what_would_be_right(parse, text, says):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["10mbit", "2.5gbit", "800kbit", "1gbit", "1bit", "1234.567kbit", "0bit"])
def test_a_rate_prints_as_it_was_written(text):
    assert format_rate(parse_rate(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(number=st.integers(0, LIMIT))
def test_every_quantity_survives_the_way_out_and_back(kind, number):
    parse, format_ = KINDS[kind]
    assert parse(format_(number)) == number


@given(number=st.decimals(min_value=0, max_value=10**6, places=6), unit=st.sampled_from(["kbit", "mbit", "gbit"]))
def test_decimals_are_exact(number, unit):
    exact = Decimal(number) * {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}[unit]
    text = f"{number}{unit}"
    if exact == exact.to_integral_value():
        assert parse_rate(text) == int(exact)
    else:
        with pytest.raises(ConfigError):
            parse_rate(text)


@given(text=st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    for parse, format_ in KINDS.values():
        try:
            number = parse(text)
        except ConfigError:
            continue
        assert parse(format_(number)) == number


def test_a_negative_quantity_is_not_printed():
    with pytest.raises(ConfigError):
        format_rate(-1)
