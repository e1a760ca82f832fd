"""A computation's time–energy choices: those left once blocking power and dominated points count.

Blocking power is paid whether a GPU computes or waits, so plans compare energy − blocking power · time
(Perseus, sec. 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.training.profile import (
    Choice,
    ComputationKey,
    Profile,
    StageProfileError,
    profile_of,
    read_profile,
)

__all__ = [
    "Choice",
    "Computation",
    "ComputationKey",
    "Profile",
    "StageProfileError",
    "computation_of",
    "constant",
    "profile_of",
    "read_profile",
]


@dataclass(frozen=True, slots=True)
class Computation:
    """Choices worth taking, fastest first: time rises and effective cost falls strictly along `choices`.

    `hull` indexes the choices on the lower convex hull of (time, effective cost), first and last included.
    `all_max` is the highest setting measured; it need not be the fastest, nor among `choices`. `measured`
    is all there was.
    """

    choices: tuple[Choice, ...]
    hull: tuple[int, ...]
    blocking_power_w: float
    all_max: Choice
    measured: tuple[Choice, ...]

    @property
    def fastest(self) -> Choice:
        return self.choices[0]

    @property
    def least_energy(self) -> Choice:
        return self.choices[-1]

    def effective_j(self, choice: Choice) -> float:
        """Blocking power is paid anyway, so subtract it (Perseus, sec. 4)."""
        return choice.energy_j - self.blocking_power_w * choice.time_s


def computation_of(choices: Sequence[Choice], blocking_power_w: float = 0.0) -> Computation:
    """Drop what is slower without being cheaper; mark the lower convex hull of the rest."""
    if not choices:
        raise ValueError("a computation needs at least one choice")

    def effective_j(choice: Choice) -> float:
        return choice.energy_j - blocking_power_w * choice.time_s

    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.time_s, effective_j(c))):
        if not kept or effective_j(choice) < effective_j(kept[-1]):
            kept.append(choice)
    hull: list[int] = []
    for index, choice in enumerate(kept):
        while len(hull) >= 2 and not _turns_left(kept[hull[-2]], kept[hull[-1]], choice, blocking_power_w):
            hull.pop()
        hull.append(index)
    all_max = max(choices, key=lambda c: (c.freq_mhz, c.power_limit_w, -c.time_s))
    return Computation(tuple(kept), tuple(hull), blocking_power_w, all_max, tuple(choices))


def constant(time_s: float, energy_j: float = 0.0) -> Computation:
    """An operation with one choice, such as a transfer: its clock is not ours and no GPU blocks on it."""
    return computation_of((Choice(freq_mhz=0, time_s=time_s, energy_j=energy_j),))


def _turns_left(a: Choice, b: Choice, c: Choice, blocking_power_w: float) -> bool:
    """Is b strictly below the line from a to c?"""
    saved_first_j = a.energy_j - b.energy_j + blocking_power_w * (b.time_s - a.time_s)
    saved_then_j = b.energy_j - c.energy_j + blocking_power_w * (c.time_s - b.time_s)
    return saved_first_j * (c.time_s - b.time_s) > saved_then_j * (b.time_s - a.time_s)
