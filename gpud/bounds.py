"""What a request may ask of a GPU: its supported range, the operator's bounds, the leased range, and how often."""

import math
from dataclasses import dataclass

from actors.gpu.gpud_wire import ErrorKind
from control_plane.leases import Hold, Lease
from gpud.card import Card
from gpud.requests import RefusedError

SETS_PER_S = 50.0
"""On one GPU. A lock takes 10-20 ms, so that a GPU takes no more; the control loops here ask for five."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The operator's: no clock outside is ever set. None: the GPU's own limit."""

    low_mhz: int | None = None
    high_mhz: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Bounds":
        """From MIN:MAX in MHz. Raises ValueError."""
        low, colon, high = text.partition(":")
        try:
            found = cls(int(low), int(high))
        except ValueError:
            found = None
        if not colon or found is None or not 0 < (found.low_mhz or 0) <= (found.high_mhz or 0):
            raise ValueError(f"bounds must be MIN:MAX in whole MHz, MIN not above MAX, got {text!r}") from None
        return found

    def check(self, uuid: str, freq_mhz: int) -> None:
        """Raises RefusedError."""
        low, high = self.low_mhz or 0, self.high_mhz or math.inf
        if not low <= freq_mhz <= high:
            told = f"{self.low_mhz}..{self.high_mhz} MHz"
            raise RefusedError(ErrorKind.OUT_OF_BOUNDS, f"GPU {uuid}: {freq_mhz} MHz is outside the operator's {told}")

    def within(self, asked_mhz: tuple[int, int] | None) -> tuple[int, int] | None:
        """The range of a schedule lease: what was asked for, and no more than the operator allows."""
        low, high = asked_mhz or (0, 1 << 30)
        low, high = max(low, self.low_mhz or 0), min(high, self.high_mhz or 1 << 30)
        if low > high:
            raise RefusedError(
                ErrorKind.OUT_OF_BOUNDS, f"clocks_mhz {asked_mhz} lie outside {self.low_mhz}..{self.high_mhz} MHz"
            )
        return None if (low, high) == (0, 1 << 30) else (low, high)


NO_BOUNDS = Bounds()


def checked_hold(card: Card, hold: Hold, bounds: Bounds) -> Hold:
    """The hold at supported values: the clock rounded down, the highest one being no lock at all where the operator
    sets no bound. Raises RefusedError."""
    facts = card.facts
    assert facts is not None
    freq_mhz = None if hold.freq_mhz is None else _checked_mhz(card, hold.freq_mhz, bounds)
    if hold.power_w is not None:
        if facts.limits_w is None:
            raise RefusedError(ErrorKind.NOT_SUPPORTED, f"GPU {card.uuid}: its power cannot be limited")
        low_w, _, high_w = facts.limits_w
        if not low_w <= hold.power_w <= high_w:
            outside = f"{hold.power_w:g} W is outside {low_w:g}..{high_w:g} W"
            raise RefusedError(ErrorKind.OUT_OF_BOUNDS, f"GPU {card.uuid}: {outside}")
    return Hold(freq_mhz, hold.power_w)


def checked_scheduled(card: Card, lease: Lease | None, owner: str, freq_mhz: int | None, bounds: Bounds) -> int | None:
    """The clock that the owner of a schedule lease may set now. Raises RefusedError."""
    if lease is None or lease.owner != owner or lease.hold is not None:
        holder = "nobody" if lease is None else lease.owner.rpartition("@")[0]
        raise RefusedError(ErrorKind.LEASED, f"GPU {card.uuid}: no schedule lease of the caller ({holder} holds it)")
    if freq_mhz is None:
        return None
    if lease.clocks_mhz is not None and not lease.clocks_mhz[0] <= freq_mhz <= lease.clocks_mhz[1]:
        low, high = lease.clocks_mhz
        raise RefusedError(
            ErrorKind.OUT_OF_BOUNDS, f"GPU {card.uuid}: {freq_mhz} MHz is outside {low}..{high} MHz leased"
        )
    return _checked_mhz(card, freq_mhz, bounds)


def _checked_mhz(card: Card, freq_mhz: int, bounds: Bounds) -> int:
    facts = card.facts
    assert facts is not None
    if not facts.clocks_mhz:
        raise RefusedError(ErrorKind.NOT_SUPPORTED, f"GPU {card.uuid}: its clocks cannot be locked; limit its power")
    low, high = facts.clocks_mhz[0], facts.clocks_mhz[-1]
    if not low <= freq_mhz <= high:
        raise RefusedError(ErrorKind.OUT_OF_BOUNDS, f"GPU {card.uuid}: {freq_mhz} MHz is outside {low}..{high} MHz")
    bounds.check(card.uuid, freq_mhz)
    rounded_mhz = facts.at_most(freq_mhz)
    bounds.check(card.uuid, rounded_mhz)
    return rounded_mhz


class RateLimit:
    """A bucket of ``SETS_PER_S`` sets that fills at as many a second."""

    def __init__(self, sets_per_s: float = SETS_PER_S) -> None:
        self._per_s, self._left, self._at_s = sets_per_s, sets_per_s, 0.0

    def take(self, uuid: str, now_s: float) -> None:
        """Raises RefusedError where there were too many."""
        self._left = min(self._per_s, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            raise RefusedError(ErrorKind.RATE, f"GPU {uuid}: more than {self._per_s:g} sets in a second")
        self._left -= 1
