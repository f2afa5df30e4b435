"""How much is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from .processes import settle

if TYPE_CHECKING:
    from .floor import Floor


@frozen(kw_only=True)
class Setting:
    """How much to do.

    :ivar n: workers
    :ivar pairs: interleaved runs of either side
    :ivar floor: the C program, or why there is none
    :ivar settled: whether each run waits until the kernel has freed what the last one left
    """

    n: int
    pairs: int
    floor: Floor | str
    settled: bool = True

    def settle(self) -> None:
        if self.settled:
            settle()
