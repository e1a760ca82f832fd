"""Who lags, and by how much, from each pipeline's own compute times: no pipeline needs to see another's
clock.

A lag counts once enough reports in a row show it, at the least of them; one good report ends it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType

from control_plane.training.dag import Dag, finish_times
from control_plane.training.planner import PipelineId, Straggler


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
class ComputeReport:
    """One pipeline's iteration: per stage, every computation's measured time over that of its planned clock."""

    pipeline: PipelineId
    now_s: float
    ratios: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Detector:
    """What past reports leave behind: per pipeline the degrees of the lagging reports in a row."""

    settings: DetectorSettings = field(default_factory=DetectorSettings)
    lagging: Mapping[PipelineId, tuple[float, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def observe(self, dag: Dag, report: ComputeReport) -> tuple["Detector", Straggler | None]:
        """The next detector, and what to tell the planner: a lag, its end (degree 1), or nothing new."""
        degree = pipeline_degree(dag, tuple(_typical(ratios) for ratios in report.ratios))
        before = self.lagging.get(report.pipeline, ())
        was_straggler = len(before) >= self.settings.confirmations
        if degree <= 1 + self.settings.margin_ratio:
            recovered = Straggler(1.0, report.now_s) if was_straggler else None
            return self._with(report.pipeline, ()), recovered
        recent = (*before, degree)[-self.settings.confirmations :]
        if len(recent) < self.settings.confirmations:
            return self._with(report.pipeline, recent), None
        lag = min(recent)
        said = min(before) if was_straggler else 1.0
        news = Straggler(lag, report.now_s) if abs(lag - said) > self.settings.margin_ratio / 2 else None
        return self._with(report.pipeline, recent), news

    def _with(self, pipeline: PipelineId, recent: tuple[float, ...]) -> "Detector":
        lagging = {name: degrees for name, degrees in self.lagging.items() if name != pipeline}
        if recent:
            lagging[pipeline] = recent
        return Detector(self.settings, MappingProxyType(lagging))


def pipeline_degree(dag: Dag, stage_ratios: tuple[float, ...]) -> float:
    """How many times T_min a pipeline takes at full clocks when its stages are slower by these ratios."""
    fastest_s = dag.per_operation(c.fastest.time_s for c in dag.computations)
    slowed_s = fastest_s.copy()
    for op, task in enumerate(dag.tasks):
        slowed_s[op] *= stage_ratios[task.stage]
    return float(finish_times(dag, slowed_s).max() / finish_times(dag, fastest_s).max())


def _typical(ratios: tuple[float, ...]) -> float:
    """The median: half of a stage's computations may be disturbed without moving it."""
    if not ratios:
        raise ValueError("a report needs at least one computation per stage")
    return median(ratios)
