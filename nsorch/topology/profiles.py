"""Access links by name, with where their figures are from."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import frozen

from nsorch.topology.emulation import PROFILE_NAMES, Emulation
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Mapping


@frozen(kw_only=True, eq=False, repr=False)
class Profile(Value):
    """An access link, of which one end is the subscriber's.

    :ivar up: from the subscriber
    :ivar down: to the subscriber
    :ivar source: of the figures
    """

    name: str
    up: Emulation
    down: Emulation
    source: str


def _profile(name: str, source: str, *, down: str, up: str, delay: str, **both: Any) -> Profile:
    """*delay*: one way, half of what the source has as round trip."""
    return Profile(
        name=name,
        down=Emulation(rate=down, delay=delay, **both),
        up=Emulation(rate=up, delay=delay, **both),
        source=source,
    )


_WEBPAGETEST = "WebPageTest, settings/connectivity.ini.sample"
_IMC_2022 = "F. Michel et al., A First Look at Starlink Performance, IMC 2022"

#: by their names
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            _profile(
                "wifi",
                "Apple, Network Link Conditioner, preset Wi-Fi",
                down="40mbit",
                up="33mbit",
                delay="1ms",
            ),
            _profile("3g", f"{_WEBPAGETEST}, 3G", down="1.6mbit", up="768kbit", delay="150ms"),
            _profile("4g", f"{_WEBPAGETEST}, 4G", down="9mbit", up="9mbit", delay="85ms"),
            _profile(
                "5g",
                "ITU-R M.2410-0, 4.3 and 4.7.1: user experienced data rates of 100 and 50 Mbit/s, 4 ms one way",
                down="100mbit",
                up="50mbit",
                delay="4ms",
            ),
            _profile("dsl", f"{_WEBPAGETEST}, DSL", down="1.5mbit", up="384kbit", delay="25ms"),
            _profile("cable", f"{_WEBPAGETEST}, Cable", down="5mbit", up="1mbit", delay="14ms"),
            _profile(
                "satellite-leo",
                f"{_IMC_2022}: medians of 178 and 17 Mbit/s, and of 50 ms round trip, 40 to 60 ms for half of them",
                down="178mbit",
                up="17mbit",
                delay="25ms",
                jitter="5ms",
                distribution="uniform",
            ),
            _profile(
                "satellite-geo",
                f"RFC 2488, 2: up to 279 ms one way; {_IMC_2022}: a subscription of 100 and 10 Mbit/s",
                down="100mbit",
                up="10mbit",
                delay="279ms",
            ),
            _profile("dialup", f"{_WEBPAGETEST}, 56K Dial-Up", down="49kbit", up="30kbit", delay="60ms"),
        )
    }
)
assert tuple(PROFILES) == PROFILE_NAMES
