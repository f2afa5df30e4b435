"""The C program that does with the kernel alone what nsorch does: what a node costs at least."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "shared" / "bench" / "star_floor.c"


class FloorMissingError(Exception):
    """It can't be built or run here; the text says why."""


class Floor:
    """Built into *folder*.

    :raises FloorMissingError: there is no source, no compiler, or the caller isn't root
    """

    def __init__(self, folder: str, source: Path = SOURCE) -> None:
        if not source.exists():
            raise FloorMissingError(f"no {source.name}")
        compiler = shutil.which("cc")
        if compiler is None:
            raise FloorMissingError("no cc")
        if os.geteuid() != 0:
            raise FloorMissingError(f"{source.stem} needs root")
        self.program = os.path.join(folder, source.stem)
        subprocess.run([compiler, "-O2", "-o", self.program, str(source)], check=True)

    def namespaces(self, n: int, *arguments: str) -> float:
        """Seconds that it spends on the namespaces (and commands) of *n* nodes."""
        done = subprocess.run([self.program, str(n), *arguments], check=True, capture_output=True, text=True)
        found = re.search(r"\(namespaces (\d+),", done.stdout)
        assert found is not None
        return int(found[1]) * 1e-6 * n

    def star(self, n: int, *arguments: str) -> tuple[float, float]:
        """Seconds to create a star of *n* nodes, and until the last interface of it is gone."""
        done = subprocess.run([self.program, str(n), *arguments], check=True, capture_output=True, text=True)
        found = re.search(r"create ([\d.]+) s.*gone after ([\d.]+) s", done.stdout)
        assert found is not None
        return float(found[1]), float(found[2])
