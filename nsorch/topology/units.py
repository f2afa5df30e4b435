"""Quantities as people write them, in the units of tc(8)."""

from __future__ import annotations

import math
import re

from nsorch.topology.kinds import shown

_QUANTITY = r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z%µ]*)\s*"
_SECONDS = {
    "s": 1.0,
    "sec": 1.0,
    "secs": 1.0,
    "ms": 1e-3,
    "msec": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "usec": 1e-6,
    "ns": 1e-9,
}
_BITS = {
    f"{prefix}{unit}": factor * size
    for prefix, factor in (("", 1), ("k", 1e3), ("m", 1e6), ("g", 1e9), ("t", 1e12))
    for unit, size in (("bit", 1), ("bps", 8))
} | {
    f"{prefix}{unit}": factor * size
    for prefix, factor in (("ki", 2**10), ("mi", 2**20), ("gi", 2**30))
    for unit, size in (("bit", 1), ("bps", 8))
}


def _split(value: object, what: str) -> tuple[float, str]:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{shown(value)} is not {what}")
    if isinstance(value, int) and value.bit_length() > 256:
        raise ValueError(f"a huge number is not {what}")  # no float has room for it
    if not isinstance(value, str):
        number, unit = float(value), ""
    else:
        match = re.fullmatch(_QUANTITY, value)
        if match is None:
            raise ValueError(f"{shown(value)} is not {what}")
        number, unit = float(match[1]), match[2]
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{shown(value)} is not {what}")
    return number, unit


def duration(value: object) -> float:
    """Seconds: a number of them, or "20ms", "1.5s", "10us".

    :raises ValueError: it is no duration
    """
    number, unit = _split(value, "a duration")
    if unit and unit not in _SECONDS:
        raise ValueError(f"{shown(value)} is not a duration")
    return round(number * _SECONDS.get(unit, 1.0), 12)


def rate(value: object) -> float:
    """Bits per second: a number of them, or "10mbit", "64kbps" (bytes per second, as tc has it), "1gibit".

    :raises ValueError: it is no rate, or zero
    """
    number, unit = _split(value, "a rate")
    if (unit and unit.lower() not in _BITS) or not number:
        raise ValueError(f"{shown(value)} is not a rate")
    return number * _BITS.get(unit.lower(), 1)


def fraction(value: object) -> float:
    """A share of 1: a number from 0 to 1, or "1%".

    :raises ValueError: it is none
    """
    number, unit = _split(value, "a fraction")
    if unit == "%":
        number /= 100
    elif unit:
        raise ValueError(f"{shown(value)} is not a fraction")
    if number > 1:
        raise ValueError(f"{shown(value)} is not a fraction: it is above 1 (100%)")
    return number


# As docker, the kernel and systemd have it: one letter is a power of 1024.
_BYTES = {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    for unit, base in (("", 1024), ("b", 1000), ("ib", 1024))
}


def size(value: object) -> int:
    """Bytes: a number of them, or "512MiB", "64m" (powers of 1024), "10MB" (powers of 1000).

    :raises ValueError: it is no size
    """
    number, unit = _split(value, "a size in bytes")
    factor = _BYTES.get(unit.lower())
    if factor is None or number * factor != int(number * factor) or number * factor >= 1 << 63:
        raise ValueError(f"{shown(value)} is not a size in bytes")
    return int(number * factor)


def count(value: object) -> int:
    """A whole number above 0.

    :raises ValueError: it is none
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 32:
        raise ValueError(f"{shown(value)} is not a whole number above 0, of 32 bits")
    return value
