"""Which stages of a pipeline lag, and by how much, from its own compute times: none needs to see another's clock.

A lag counts once enough reports in a row show it, at the least of them; one good report ends it. What is known already
is an argument, so a detector that restarts ends what an earlier one found.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from control_plane.training.job_spec import StageRatios
from control_plane.training.profile import Choice, ComputationKey


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """When slow is slow."""

    margin_ratio: float = 0.03
    """Slower than planned by less is noise: clocks and kernels jitter by 1–2 % on measured iterations."""
    confirmations: int = 2
    """Reports in a row before a lag counts: one page fault or checkpoint is no straggler."""

    def __post_init__(self) -> None:
        if self.margin_ratio <= 0:
            raise ValueError(f"margin_ratio must be positive, got {self.margin_ratio}")
        if self.confirmations < 1:
            raise ValueError(f"confirmations must be at least 1, got {self.confirmations}")


@dataclass(frozen=True, slots=True)
class MeasuredComputation:
    """One computation as it ran."""

    stage: int
    instruction: str
    freq_mhz: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Detector:
    """What the last reports of one pipeline leave behind: their stages' ratios, oldest first."""

    settings: DetectorSettings = DetectorSettings()
    recent: tuple[StageRatios, ...] = ()

    def observe(self, ratios: StageRatios, known: StageRatios) -> tuple["Detector", StageRatios | None]:
        """The next detector, and what to plan for from now on where that is not what is ``known``: per stage its lag,
        or 1. ``known`` is empty where no lag is."""
        recent = (*self.recent, ratios)[-self.settings.confirmations :]
        detector = Detector(self.settings, recent)
        before = known or (1.0,) * len(ratios)
        now = tuple(self._lag([report[stage] for report in recent], before[stage]) for stage in range(len(ratios)))
        return detector, now if now != before else None

    def _lag(self, recent: list[float], known: float) -> float:
        margin = self.settings.margin_ratio
        if recent[-1] <= 1 + margin:
            return 1.0
        if len(recent) < self.settings.confirmations or min(recent) <= 1 + margin:
            return known
        lag = min(recent)
        return lag if abs(lag - known) > margin / 2 else known


def stage_ratios(
    profile: Mapping[ComputationKey, tuple[Choice, ...]], stages: int, measured: Iterable[MeasuredComputation]
) -> StageRatios:
    """Per stage, the median of measured over profiled time at the same clock: half of a stage's computations may be
    disturbed without moving it. A computation at a clock that was never profiled says nothing; nor does a stage
    without any other (1)."""
    profiled_s = {(key, choice.freq_mhz): choice.time_s for key, choices in profile.items() for choice in choices}
    ratios: list[list[float]] = [[] for _ in range(stages)]
    for step in measured:
        expected_s = profiled_s.get(((step.stage, step.instruction), step.freq_mhz))
        if expected_s:
            ratios[step.stage].append(step.time_s / expected_s)
    return tuple(median(found) if found else 1.0 for found in ratios)
