from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from bench.figure import Figure, Limit, render
from bench.floor import Floor, FloorMissingError
from bench.rows import ROWS
from bench.ticker import percentile, ticker

pytestmark = pytest.mark.once

_ROOT = Path(__file__).parents[1]


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120)


def test_every_row_is_measured_or_skipped_with_a_reason() -> None:
    rows = set(ROWS) - {7}  # a heap of 1 GiB
    done = _bench("-n", "3", "--pairs", "1", "--unsettled", "--json", "--rows", ",".join(map(str, rows)))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {"kernel", "cpus", "python"} <= told["machine"].keys()
    figures = told["figures"]
    assert {figure["row"] for figure in figures} == rows | {11}, "one run gives rows 10 and 11"
    for figure in figures:
        # Three workers take less memory than it varies by.
        assert figure["skipped"] or figure["measured"] > 0 or figure["unit"] == "KiB", figure
        verdicts = ("", "skipped") if figure["row"] == 16 else ("ok", "over", "skipped")
        if figure["row"] == 18 and figure["what"].endswith("until it has ended, p50"):
            verdicts = ("", "skipped")  # beside others; the limit is about the start
        assert figure["verdict"] in verdicts, figure
    assert sum(figure["row"] == 4 for figure in figures) == 6, "three shapes on two backends"
    peers = [figure for figure in figures if figure["row"] == 16]
    assert sum(bool(figure["skipped"]) for figure in peers) * 2 + sum(not figure["skipped"] for figure in peers) == 8
    for figure in peers:
        named = figure["skipped"] or figure["beside_what"]
        assert named.startswith(("Mininet", "munet", "iproute2", "pyroute2"))


def test_the_table_has_the_machine_above_it() -> None:
    done = _bench("--quick", "--rows", "9")
    assert done.returncode == 0, done.stderr
    machine, *_, row = done.stdout.splitlines()
    assert machine.startswith(f"kernel {os.uname().release}, cpus ")
    assert row.startswith("9 ")
    assert "import anyio" in row


def test_an_unknown_row_is_refused() -> None:
    done = _bench("--rows", "1,99")
    assert done.returncode == 2
    assert "--rows" in done.stderr


@pytest.mark.parametrize(
    ("kind", "measured", "ratio", "verdict"),
    [
        (Limit.RATIO_AT_MOST, 100, 1.4, "ok"),
        (Limit.RATIO_AT_MOST, 1, 1.5, "over"),
        (Limit.AT_MOST, 1.4, 9, "ok"),
        (Limit.AT_MOST, 1.5, 1, "over"),
        (Limit.AT_LEAST, 1.4, 1, "ok"),
        (Limit.AT_LEAST, 1.3, 9, "over"),
    ],
)
def test_a_verdict_is_about_what_the_limit_is_about(kind: Limit, measured: float, ratio: float, verdict: str) -> None:
    figure = Figure(row=1, what="x", unit="ms", measured=measured, beside=1, ratio=ratio, kind=kind, limit=1.4)
    assert figure.verdict == verdict
    assert render([figure]).splitlines()[-1].endswith(verdict)


def test_a_skipped_row_has_its_reason_in_the_table() -> None:
    assert "(no cc)" in render([Figure(row=1, what="x", skipped="no cc")])


def test_without_its_source_there_is_no_floor(tmp_path: Path) -> None:
    with pytest.raises(FloorMissingError, match=r"star_floor\.c"):
        Floor(str(tmp_path), tmp_path / "star_floor.c")


@pytest.mark.parametrize(("share", "expected"), [(0.99, 99), (0.5, 50), (1.0, 100), (0.0, 1)])
def test_percentile(share: float, expected: int) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


@pytest.mark.anyio
async def test_a_loop_that_stands_still_makes_every_tick_of_that_time_late() -> None:
    async with ticker() as lateness:
        end = anyio.current_time() + 0.02
        while anyio.current_time() < end:
            pass
        await anyio.lowlevel.checkpoint()
    assert len(lateness) >= 18
    assert max(lateness) >= 0.018
