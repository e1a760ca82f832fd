"""GPUs that heat or power hold below the clock they may take: what is lost, once it has lasted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.ports import CAPS

LOOKS = 3
"""In a row, a second apart: prefill of every H100 runs into its power limit for moments."""
LEAST_LOSS_RATIO = 0.05


@dataclass(frozen=True, slots=True)
class LostHeadroom:
    """``degree``: how much longer work bound by the clock takes, the allowed clock over the one that runs. Work bound
    by memory is slowed less, so it is an upper bound."""

    uuid: str
    owner: str | None
    allowed_mhz: int
    runs_mhz: int
    events: tuple[str, ...]

    @property
    def degree(self) -> float:
        return self.allowed_mhz / self.runs_mhz


class HeadroomWatch:
    """Feed it gpud's rows once a second."""

    def __init__(self) -> None:
        self._looks: dict[str, int] = {}
        self._lost: dict[str, LostHeadroom] = {}

    def changes(self, rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[LostHeadroom, ...], tuple[LostHeadroom, ...]]:
        """(newly lost or lost otherwise than told before, had been lost and is back)."""
        lost: list[LostHeadroom] = []
        back: list[LostHeadroom] = []
        for row in rows:
            uuid = row["uuid"]
            found = _loss(row)
            self._looks[uuid] = self._looks.get(uuid, 0) + 1 if found is not None else 0
            told = self._lost.get(uuid)
            if found is not None and self._looks[uuid] >= LOOKS:
                if told is None or told.owner != found.owner or abs(told.degree / found.degree - 1) > LEAST_LOSS_RATIO:
                    self._lost[uuid] = found
                    lost.append(found)
            elif found is None and told is not None:
                back.append(self._lost.pop(uuid))
        return tuple(lost), tuple(back)


def _loss(row: Mapping[str, Any]) -> LostHeadroom | None:
    runs_mhz, clocks = row["clock_mhz"], row["clocks_mhz"]
    held_down = tuple(event for event in row["events"] or () if event in CAPS)
    if runs_mhz is None or not clocks or not held_down:
        return None
    allowed_mhz = row["max_mhz"] or clocks[-1]
    if runs_mhz >= allowed_mhz * (1 - LEAST_LOSS_RATIO):
        return None
    owner = None if row["lease"] is None else row["lease"]["owner"]
    return LostHeadroom(row["uuid"], owner, allowed_mhz, runs_mhz, held_down)
