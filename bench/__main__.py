"""Prints the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile

from .figure import Figure, render
from .floor import Floor, FloorMissingError
from .rows import ROWS
from .setting import Setting


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count() or 0,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "user": "root" if os.geteuid() == 0 else "not root",
    }


def _rows(text: str) -> list[int]:
    rows = [int(word) for word in text.split(",")]
    if unknown := [row for row in rows if row not in ROWS]:
        known = ", ".join(map(str, sorted(ROWS)))
        raise argparse.ArgumentTypeError(f"there is no row {unknown[0]}, only {known}")
    return rows


def _measure(rows: list[int], setting: Setting) -> list[Figure]:
    figures = []
    for row in rows:
        try:
            for figure in ROWS[row](setting):
                figures.append(figure)
                print(f"row {row}: {figure.what}", file=sys.stderr)
        except subprocess.CalledProcessError as exc:
            # What it said is on standard error; the other rows don't depend on it.
            failure = f"a measurement ended with status {exc.returncode}"
            figures.append(Figure(row=row, what="", failed=failure))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure nsorch beside what does the same.")
    parser.add_argument("-n", type=int, help="workers (default: 1000; 100 with --quick)")
    parser.add_argument("--pairs", type=int, help="interleaved pairs (default: 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="few workers, one pair: to see that it runs")
    parser.add_argument("--rows", type=_rows, default=list(ROWS), help="such as 1,3 (default: all)")
    parser.add_argument("--unsettled", action="store_true", help="in a row, whatever the kernel still frees")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    floor: Floor | str
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            floor = Floor(folder)
        except FloorMissingError as exc:
            floor = str(exc)
        setting = Setting(
            n=chosen.n or (100 if chosen.quick else 1000),
            pairs=chosen.pairs or (1 if chosen.quick else 5),
            floor=floor,
            settled=not chosen.unsettled,
        )
        figures = _measure(chosen.rows, setting)
    if chosen.json:
        print(json.dumps({"machine": machine(), "figures": [figure.to_dict() for figure in figures]}, indent=2))
    else:
        print(", ".join(f"{key} {value}" for key, value in machine().items()))
        print(f"{setting.n:,} workers; medians of {setting.pairs} interleaved pairs\n")
        print(render(figures))
    return int(any(figure.failed for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
