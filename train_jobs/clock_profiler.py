"""Finds out what a rank's computations take at every clock, while it trains: few clocks, a few iterations at each.

Every rank runs the same clock in the same iteration, so none needs to be told. Computations whose clock was still
settling do not count. Clocks in between are interpolated: times linearly in 1/f, as compute-bound work goes, energies
linearly in f; what leaving out each measured clock in turn would have cost says how wrong that may be.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from control_plane.training.profile import Choice
from train_jobs.meter import MeasuredStep

MOST_ITERATIONS = 30
"""In all: two at full clock, in which the order is learnt and checked, then so many clocks."""
CLOCKS = 9
LOWEST_SHARE = 0.45
"""Of the highest clock: below about half of it energy rises again on the GPUs of the Perseus and Zeus papers."""
CONSTANT_RATIO = 0.015
"""A computation that is slowed by less from the highest to the lowest clock waits for something else than the SMs."""
BETWEEN = 3
"""Clocks that are interpolated between two measured ones."""


def clocks_to_measure(supported_mhz: Sequence[int], count: int = CLOCKS) -> tuple[int, ...]:
    """The highest first, spread evenly over the useful range. ``supported_mhz`` ascends."""
    useful = [mhz for mhz in supported_mhz if mhz >= LOWEST_SHARE * supported_mhz[-1]]
    if len(useful) <= count:
        return tuple(reversed(useful))
    return tuple(useful[round(place * (len(useful) - 1) / (count - 1))] for place in reversed(range(count)))


@dataclass(frozen=True, slots=True)
class ClockProfile:
    """One rank's: per kind of computation its choices, highest clock first."""

    choices: Mapping[str, tuple[Choice, ...]]
    constant: tuple[str, ...]
    """Kinds that take the same time at every clock."""
    interpolation_error_ratio: float
    """The largest error, in time or energy, of a measured clock that is interpolated from its neighbours instead,
    which are twice as far away as those of a clock that was not measured."""
    noise_ratio: float
    """The median distance of a repeated measurement from its median, over it: the worst kind's."""
    measured_mhz: tuple[int, ...]
    waiting_w: float | None = None
    """At the highest clock, where waiting was measured on its own."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a GPU draws at least while it waits for others, measured on its own. A GPU's power samples lag by more than
    a short computation lasts, so computing and waiting look alike in them; over whole iterations energy is right, and
    what waiting does not explain is computing. Nothing computes above the GPU's power limit: what is left beyond that
    was drawn by waiting, as NCCL's kernels do that wait with data on their way."""

    least_w: float
    limit_w: float
    iterations: Mapping[int, Sequence[tuple[float, float]]]
    """By clock, (time in s, energy in J) of whole iterations."""
    per_iteration: Mapping[str, int]
    """How often each kind of computation runs in one."""

    def scales(self, seen: Mapping[str, Mapping[int, Sequence[MeasuredStep]]]) -> dict[int, float]:
        """By which sampled energies are multiplied, by clock. Computing takes no less power than waiting."""
        found = {}
        for mhz in self.iterations:
            time_s, energy_j, computing_s, sampled_j = self._of(mhz, seen)
            if sampled_j > 0:
                waiting_w = self.power_w(mhz, seen)
                computing_j = energy_j - waiting_w * max(0.0, time_s - computing_s)
                found[mhz] = max(computing_j, waiting_w * computing_s) / sampled_j
        return found

    def power_w(self, mhz: int, seen: Mapping[str, Mapping[int, Sequence[MeasuredStep]]]) -> float:
        """Of waiting, in iterations at this clock."""
        if mhz not in self.iterations:
            return self.least_w
        time_s, energy_j, computing_s, _ = self._of(mhz, seen)
        waited_s = time_s - computing_s
        return max(self.least_w, (energy_j - self.limit_w * computing_s) / waited_s) if waited_s > 0 else self.least_w

    def _of(
        self, mhz: int, seen: Mapping[str, Mapping[int, Sequence[MeasuredStep]]]
    ) -> tuple[float, float, float, float]:
        """Of a mean iteration: its time and energy, and those of its computations as sampled."""
        whole = self.iterations[mhz]
        kinds = [(self.per_iteration.get(name, 0), by_clock.get(mhz, ())) for name, by_clock in seen.items()]
        return (
            fmean(time_s for time_s, _ in whole),
            fmean(energy_j for _, energy_j in whole),
            sum(count * median(step.time_s for step in steps) for count, steps in kinds if steps),
            sum(count * median(step.energy_j for step in steps) for count, steps in kinds if steps),
        )


class ClockProfiler:
    """Says which clock to run next and takes what was measured."""

    def __init__(self, supported_mhz: Sequence[int], iterations_a_clock: int = 2, clocks: int = CLOCKS) -> None:
        """``supported_mhz`` ascends. Raises ValueError where the budget is exceeded."""
        self._supported_mhz = tuple(supported_mhz)
        asked = clocks_to_measure(self._supported_mhz, clocks)
        self._plan = tuple(mhz for mhz in asked for _ in range(iterations_a_clock))
        if len(self._plan) + 2 > MOST_ITERATIONS:
            raise ValueError(
                f"{clocks} clocks of {iterations_a_clock} iterations and 2 before exceed {MOST_ITERATIONS} iterations; "
                "measure fewer clocks"
            )
        self._seen: dict[str, dict[int, list[MeasuredStep]]] = defaultdict(lambda: defaultdict(list))

    @property
    def iterations(self) -> int:
        """How many it takes."""
        return len(self._plan)

    def clock_of(self, iteration: int) -> int | None:
        """Of its own iterations, counted from 0; None when there is nothing left to measure."""
        return self._plan[iteration] if iteration < len(self._plan) else None

    def add(self, steps: Iterable[MeasuredStep]) -> None:
        for step in steps:
            if step.settled and step.time_s > 0:
                self._seen[step.step.name][step.freq_mhz].append(step)

    def profile(self, chunks: int = 1, waiting: "Waiting | None" = None) -> ClockProfile:
        """``chunks``: model chunks of this rank; a choice is what all of them take together, so that the planner's
        even share is one's. With ``waiting`` the energies of each clock are scaled to what its iterations used beside
        waiting. Raises ValueError where a kind was never measured at a settled clock."""
        choices, constant, errors, noises = {}, [], [0.0], [0.0]
        scales = {} if waiting is None else waiting.scales(self._seen)
        for name, by_clock in self._seen.items():
            measured = [
                _choice(mhz, steps, chunks, scales.get(mhz, 1.0))
                for mhz, steps in sorted(by_clock.items(), reverse=True)
            ]
            noises.append(max(_spread([step.time_s for step in steps]) for steps in by_clock.values()))
            slowest, fastest = max(c.time_s for c in measured), min(c.time_s for c in measured)
            if len(measured) > 1 and slowest <= fastest * (1 + CONSTANT_RATIO):
                constant.append(name)
                same_s = median(c.time_s for c in measured)
                measured = [Choice(c.freq_mhz, same_s, c.energy_j) for c in measured]
            errors += [
                _distance(between(low, high, left_out.freq_mhz), left_out)
                for high, left_out, low in zip(measured, measured[1:], measured[2:], strict=False)
            ]
            choices[name] = self._with_clocks_between(measured)
        if not choices:
            raise ValueError("no computation was measured at a settled clock; computations are too short to profile")
        clocks = sorted({mhz for by_clock in self._seen.values() for mhz in by_clock}, reverse=True)
        waiting_w = None if waiting is None else waiting.power_w(clocks[0], self._seen)
        return ClockProfile(choices, tuple(constant), max(errors), max(noises), tuple(clocks), waiting_w)

    def _with_clocks_between(self, measured: Sequence[Choice]) -> tuple[Choice, ...]:
        filled = list(measured[:1])
        for high, low in pairwise(measured):
            inside = [mhz for mhz in reversed(self._supported_mhz) if low.freq_mhz < mhz < high.freq_mhz]
            step = max(1, round(len(inside) / (BETWEEN + 1)))
            filled += [between(low, high, mhz) for mhz in inside[step - 1 :: step][:BETWEEN]]
            filled.append(low)
        return tuple(filled)


def between(low: Choice, high: Choice, freq_mhz: int) -> Choice:
    """A clock between two measured ones."""
    share = (1 / freq_mhz - 1 / high.freq_mhz) / (1 / low.freq_mhz - 1 / high.freq_mhz)
    time_s = high.time_s + share * (low.time_s - high.time_s)
    share_f = (freq_mhz - low.freq_mhz) / (high.freq_mhz - low.freq_mhz)
    return Choice(freq_mhz, time_s, low.energy_j + share_f * (high.energy_j - low.energy_j))


def _choice(mhz: int, steps: Sequence[MeasuredStep], chunks: int, scale: float) -> Choice:
    return Choice(mhz, chunks * median(s.time_s for s in steps), scale * chunks * median(s.energy_j for s in steps))


def _distance(one: Choice, other: Choice) -> float:
    """Of time or energy, whichever is further off."""
    energy = abs(one.energy_j / other.energy_j - 1) if other.energy_j > 0 else 0.0
    return max(abs(one.time_s / other.time_s - 1), energy)


def _spread(values: Sequence[float]) -> float:
    middle = median(values)
    return median(abs(value - middle) for value in values) / middle
