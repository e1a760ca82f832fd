"""Where a saving comes from, step by step: today's fleet, right-sizing, clocks, and the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.simulation.policies import SINGLE_POOL
from control_plane.simulation.scoring import Score

CLOCK_ONLY = "clock-only"
_WHY = {SINGLE_POOL: "right-sizing", CLOCK_ONLY: "clocks"}


@dataclass(frozen=True, slots=True)
class Level:
    """A run, and what changes on the way to it."""

    policy: str
    why: str
    energy_j: float
    holds: bool
    """The SLO, for the share of requests that was asked for."""


def waterfall(
    scores: Mapping[str, Score], policies: Sequence[str], attainment: float, today: str | None = None
) -> list[Level]:
    """Today's fleet where there is one, the sized pool, the sized pool with a clock rule where it was run, and the
    first of ``policies`` that is neither. What each step saves is the difference between two levels; a step to a run
    that breaks the SLO is no saving at equal service."""
    ours = next((name for name in policies if name not in (today, *_WHY) and name in scores), None)
    names = [name for name in (today, SINGLE_POOL, CLOCK_ONLY, ours) if name is not None and name in scores]
    rest = "the rest" if CLOCK_ONLY in names else "clocks and the rest"
    whys = [("today" if name == today else _WHY.get(name, rest)) for name in names]
    return [
        Level(name, why, scores[name].energy_j, scores[name].slo_attainment >= attainment)
        for name, why in zip(names, whys, strict=True)
    ]
