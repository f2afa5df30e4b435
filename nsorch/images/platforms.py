"""Which image of several is for this machine."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from attrs import frozen

from nsorch.errors import ImageError
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

# As uname has them, and as Go has them (GOARCH), with the variant where there is one.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}


@frozen(eq=False, repr=False)
class Platform(Value):
    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @classmethod
    def parse(cls, text: str | None) -> Platform:
        """From ``"linux/arm64/v8"``, or ``"arm64"``; this machine's if None.

        :raises ImageError: it is none
        """
        if text is None:
            machine = os.uname().machine
            return cls("linux", *_MACHINES.get(machine, (machine, "")))
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) > 3 or not all(re.fullmatch(r"[a-z0-9_.-]+", part) for part in parts):
            raise ImageError(f'platform: "{text}" is not such as linux/arm64/v8')
        return cls(*parts)

    @classmethod
    def of(cls, descriptor: Mapping[str, Any]) -> Platform:
        """The one that a descriptor is for; empty where it doesn't say."""
        given = descriptor.get("platform")
        if not isinstance(given, dict):
            return cls("", "")
        return cls(*(str(given.get(key) or "") for key in ("os", "architecture", "variant")))

    def fits(self, other: Platform) -> bool:
        """Whether an image for *other* runs here. What isn't said fits."""
        if other.os not in ("", self.os) or other.architecture not in ("", self.architecture):
            return False
        if not self.variant or not other.variant or self.variant == other.variant:
            return True
        # A later arm runs what earlier ones did.
        return self.architecture == "arm" and other.variant < self.variant

    def best(self, descriptors: list[Any]) -> list[Any]:
        """Those that fit best: of this variant rather than of an earlier or none."""
        fitting = [each for each in descriptors if self.fits(Platform.of(each))]
        rank = {id(each): (Platform.of(each).architecture != "", Platform.of(each).variant) for each in fitting}
        highest = max(rank.values(), default=None)
        return [each for each in fitting if rank[id(each)] == highest]
