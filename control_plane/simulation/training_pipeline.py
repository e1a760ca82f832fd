"""An iteration played through: who computes when, at what clock, and what every joule was spent on.

Energy is that of the computations plus blocking power wherever a stage waits, up to the end of the iteration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.training.dag import Dag, Task, finish_times
from control_plane.training.frontier import Frontier
from control_plane.training.planner import run_choices
from control_plane.training.profile import Choice


@dataclass(frozen=True, slots=True)
class Span:
    """One computation on the timeline."""

    task: Task
    start_s: float
    end_s: float
    choice: Choice

    @property
    def energy_j(self) -> float:
        return self.choice.energy_j


@dataclass(frozen=True, slots=True)
class StageTimeline:
    """A stage's computations in order, and what it drew until the iteration ended."""

    spans: tuple[Span, ...]
    computing_j: float
    blocking_j: float

    @property
    def energy_j(self) -> float:
        return self.computing_j + self.blocking_j


@dataclass(frozen=True, slots=True)
class IterationTimeline:
    """One pipeline's iteration. It ends with the slowest pipeline; `finish_time_s` is its own last
    computation."""

    stages: tuple[StageTimeline, ...]
    finish_time_s: float
    ends_s: float

    @property
    def energy_j(self) -> float:
        return sum(stage.energy_j for stage in self.stages)

    @property
    def blocking_j(self) -> float:
        return sum(stage.blocking_j for stage in self.stages)


def simulate_iteration(
    dag: Dag, choices: Sequence[Choice], until_s: float = 0.0, stage_slowdown: Sequence[float] = ()
) -> IterationTimeline:
    """Play an iteration with these choices; stages wait at blocking power until `until_s` or its end.

    `stage_slowdown` stretches a stage's times at unchanged energy: a throttled GPU.
    """
    if len(choices) != len(dag):
        raise ValueError(f"{len(dag)} operations but {len(choices)} choices")
    time_s = np.array([choice.time_s for choice in choices])
    if stage_slowdown:
        time_s *= np.array([stage_slowdown[task.stage] for task in dag.tasks])
    finish_s = finish_times(dag, time_s)
    finish_time_s = float(finish_s.max())
    ends_s = max(finish_time_s, until_s)
    stages = 1 + max(task.stage for task in dag.tasks)
    blocking_power_w = dag.blocking_power_w / stages
    timelines = []
    for stage in range(stages):
        ops = [op for op, task in enumerate(dag.tasks) if task.stage == stage]
        ops.sort(key=lambda op: (finish_s[op], op))
        spans = tuple(
            Span(dag.tasks[op], float(finish_s[op] - time_s[op]), float(finish_s[op]), choices[op]) for op in ops
        )
        # Transfers run beside the stage's computations: they draw no blocking power and take none away.
        busy_s = sum(time_s[op] for op in ops if dag.computation(op).blocking_power_w > 0)
        computing_j = sum(span.energy_j for span in spans)
        timelines.append(StageTimeline(spans, computing_j, blocking_power_w * (ends_s - float(busy_s))))
    return IterationTimeline(tuple(timelines), finish_time_s, ends_s)


@dataclass(frozen=True, slots=True)
class Savings:
    """What planning saves of all-max energy while a straggler sets the pace, told apart.

    Intrinsic: by running off-critical computations slower at no cost in time. Extrinsic: the rest, by not
    hurrying towards the straggler. Both as ratios of what all-max clocks draw until the straggler is done.
    """

    intrinsic_ratio: float
    extrinsic_ratio: float

    @property
    def total_ratio(self) -> float:
        return self.intrinsic_ratio + self.extrinsic_ratio


def savings_with_straggler(
    dag: Dag,
    frontier: Frontier,
    fastest_plan: Sequence[Choice],
    straggler_plan: Sequence[Choice],
    straggler_time_s: float,
) -> Savings:
    """Compare one pipeline that waits for a straggler: all-max clocks, the plan at T_min, the plan for the
    straggler."""
    until_s = max(straggler_time_s, frontier.t_min_s)
    all_max = [dag.computation(op).all_max for op in range(len(dag))]
    before_j = _energy_until_j(dag, all_max, until_s)
    intrinsic_j = _energy_until_j(dag, fastest_plan, until_s)
    after_j = _energy_until_j(dag, straggler_plan, until_s)
    return Savings((before_j - intrinsic_j) / before_j, (intrinsic_j - after_j) / before_j)


def _energy_until_j(dag: Dag, choices: Sequence[Choice], until_s: float) -> float:
    finish_time_s, effective_j = run_choices(dag, choices)
    return effective_j + dag.blocking_power_w * max(finish_time_s, until_s)


@dataclass(frozen=True, slots=True)
class DataParallelJob:
    """Energy of all pipelines of a job over one iteration with one straggler among them."""

    pipelines: int
    all_max_j: float
    planned_j: float

    @property
    def saved_ratio(self) -> float:
        return 1 - self.planned_j / self.all_max_j


def simulate_job(
    dag: Dag,
    fastest_plan: Sequence[Choice],
    straggler_plan: Sequence[Choice],
    pipelines: int,
    straggler_degree: float,
) -> DataParallelJob:
    """Equal pipelines, one of them `straggler_degree` times slower at unchanged energy; it keeps the T_min
    plan."""
    if pipelines < 1:
        raise ValueError(f"pipelines must be at least 1, got {pipelines}")
    stages = 1 + max(task.stage for task in dag.tasks)
    slowdown = (straggler_degree,) * stages
    all_max = [dag.computation(op).all_max for op in range(len(dag))]
    lagging_before = simulate_iteration(dag, all_max, stage_slowdown=slowdown)
    lagging_after = simulate_iteration(dag, fastest_plan, stage_slowdown=slowdown)
    others = pipelines - 1
    all_max_j = lagging_before.energy_j + others * _energy_until_j(dag, all_max, lagging_before.ends_s)
    planned_j = lagging_after.energy_j + others * _energy_until_j(dag, straggler_plan, lagging_after.ends_s)
    return DataParallelJob(pipelines, all_max_j, planned_j)
