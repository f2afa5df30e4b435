"""A row of the table: what was measured, what ran beside it, and whether that is within the limit."""

from __future__ import annotations

import enum
from typing import Any

from attrs import asdict, frozen


class Limit(enum.Enum):
    """What a limit is about."""

    RATIO_AT_MOST = "ratio at most"
    AT_MOST = "at most"
    AT_LEAST = "at least"


@frozen(kw_only=True)
class Figure:
    """One line; *measured* and *beside* have the same *unit*.

    :ivar ratio: to what ran beside; the median of the pairs' ratios where there were pairs
    :ivar skipped: why it wasn't measured, instead of all that
    :ivar failed: what went wrong, instead of all that
    """

    row: int
    what: str
    unit: str = ""
    measured: float | None = None
    beside: float | None = None
    beside_what: str = ""
    ratio: float | None = None
    kind: Limit | None = None
    limit: float | None = None
    skipped: str = ""
    failed: str = ""

    @property
    def verdict(self) -> str:
        if self.skipped:
            return "skipped"
        if self.failed:
            return "failed"
        if self.kind is None or self.limit is None:
            return ""
        value = self.ratio if self.kind is Limit.RATIO_AT_MOST else self.measured
        assert value is not None
        return "ok" if (value >= self.limit if self.kind is Limit.AT_LEAST else value <= self.limit) else "over"

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        kind = None if self.kind is None else self.kind.value
        return {**asdict(self), "kind": kind, "verdict": self.verdict}


_HEADINGS = ("row", "what", "measured", "beside", "ratio", "limit", "verdict")


def render(figures: list[Figure]) -> str:
    """All *figures* as one table of plain text."""
    lines = [_HEADINGS, *(_cells(figure) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(figure: Figure) -> tuple[str, ...]:
    if reason := figure.skipped or figure.failed:
        return (str(figure.row), figure.what, f"({reason})", "", "", "", figure.verdict)
    assert figure.measured is not None
    beside = "" if figure.beside is None else f"{_number(figure.beside)} {figure.unit}, {figure.beside_what}"
    limit = ""
    if figure.kind is not None and figure.limit is not None:
        sign = "≥" if figure.kind is Limit.AT_LEAST else "≤"
        unit = "times" if figure.kind is Limit.RATIO_AT_MOST else figure.unit
        limit = f"{sign} {figure.limit:,g} {unit}"
    return (
        str(figure.row),
        figure.what,
        f"{_number(figure.measured)} {figure.unit}",
        beside,
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        limit,
        figure.verdict,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
