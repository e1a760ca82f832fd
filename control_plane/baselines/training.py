"""What others do with a pipeline's clocks, behind one Protocol: a policy picks a choice for every operation.

Each searches its own family of plans with the measured points; none is given more time than the deadline
unless its family has nothing that fits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from control_plane.training.computation import Computation
from control_plane.training.dag import Dag, finish_times
from control_plane.training.frontier import walk_frontier
from control_plane.training.profile import Choice
from control_plane.training.rounding import prepare, rounding_problem
from control_plane.training.rounding_kernel import repair


class ClockPolicy(Protocol):
    """Choose how every operation of an iteration runs."""

    @property
    def name(self) -> str: ...

    def choices(self, dag: Dag, deadline_s: float) -> tuple[Choice, ...]:
        """One choice per operation of the DAG."""
        ...


@dataclass(frozen=True, slots=True)
class AllMaxClocks:
    """Every clock at its highest: what frameworks do."""

    name: str = "all-max"

    def choices(self, dag: Dag, deadline_s: float) -> tuple[Choice, ...]:
        return tuple(dag.computation(op).all_max for op in range(len(dag)))


@dataclass(frozen=True, slots=True)
class PerseusClocks:
    """This project's planner."""

    name: str = "wattray"

    def choices(self, dag: Dag, deadline_s: float) -> tuple[Choice, ...]:
        frontier = walk_frontier(dag)
        library = prepare(rounding_problem(dag), frontier)
        return library.within(max(deadline_s, frontier.t_min_s)).choices(dag)


@dataclass(frozen=True, slots=True)
class ZeusGlobal:
    """One setting for every stage (Zeus, NSDI'23, as the Perseus paper applies it to pipelines)."""

    name: str = "zeus-global"

    def choices(self, dag: Dag, deadline_s: float) -> tuple[Choice, ...]:
        plans = []
        for setting in _settings(dag):
            by_kind = [_at_most(computation, setting) for computation in dag.computations]
            plans.append(_spread(dag, by_kind))
        return _least_energy_in_time(dag, plans, deadline_s)


@dataclass(frozen=True, slots=True)
class ZeusPerStage:
    """One setting per stage, so that all stages' forwards take as long as the heaviest stage's."""

    name: str = "zeus-stage"

    def choices(self, dag: Dag, deadline_s: float) -> tuple[Choice, ...]:
        stage_of_kind = {int(dag.kind[op]): task.stage for op, task in enumerate(dag.tasks)}
        forward_of_stage = {
            task.stage: dag.computation(op) for op, task in enumerate(dag.tasks) if task.instruction == "forward"
        }
        plans = []
        for setting in _settings(dag):
            pace_s = max(_at_most(forward, setting).time_s for forward in forward_of_stage.values())
            of_stage = {
                stage: min(
                    (c for c in forward.measured if c.time_s <= pace_s),
                    key=_setting,
                    default=forward.fastest,
                )
                for stage, forward in forward_of_stage.items()
            }
            by_kind = [
                _at_most(computation, _setting(of_stage[stage_of_kind[kind]]))
                if stage_of_kind.get(kind) in of_stage
                else computation.all_max
                for kind, computation in enumerate(dag.computations)
            ]
            plans.append(_spread(dag, by_kind))
        return _least_energy_in_time(dag, plans, deadline_s)


@dataclass(frozen=True, slots=True)
class EnvPipe:
    """Stretch pipeline units into the bubbles while the iteration stays as fast (EnvPipe, ATC'23).

    The last stage is taken for the heaviest, as EnvPipe does, and keeps its full speed. Every other unit begins at its
    least_energy clock; on whatever path is then too long units are sped up, the cheapest second first.
    """

    name: str = "envpipe"

    def choices(self, dag: Dag, deadline_s: float) -> tuple[Choice, ...]:
        problem = rounding_problem(dag)
        all_max_s = np.array([dag.computation(op).all_max.time_s for op in range(len(dag))])
        limit_s = max(deadline_s, float(finish_times(dag, all_max_s).max()))
        last = max(task.stage for task in dag.tasks)
        least_energy = (np.diff(problem.choice_first) - 1)[dag.kind]
        chosen = np.where([task.stage == last for task in dag.tasks], 0, least_energy)
        repair(
            problem.before_first,
            problem.before,
            dag.order,
            dag.kind,
            problem.choice_first,
            problem.choice_time_s,
            problem.choice_effective_j,
            limit_s,
            chosen,
        )
        return tuple(dag.computation(op).choices[int(index)] for op, index in enumerate(chosen))


BASELINES: tuple[ClockPolicy, ...] = (AllMaxClocks(), ZeusGlobal(), ZeusPerStage(), EnvPipe())


def baseline(name: str) -> ClockPolicy:
    """A policy as job files name it. Raises ValueError, which lists the names."""
    known: dict[str, ClockPolicy] = {policy.name: policy for policy in BASELINES}
    if name not in known:
        raise ValueError(f"unknown policy {name!r}, expected perseus or one of {', '.join(sorted(known))}")
    return known[name]


def _setting(choice: Choice) -> tuple[int, int]:
    return choice.freq_mhz, choice.power_limit_w


def _settings(dag: Dag) -> list[tuple[int, int]]:
    return sorted({_setting(c) for computation in dag.computations for c in computation.measured}, reverse=True)


def _at_most(computation: Computation, setting: tuple[int, int]) -> Choice:
    """The highest measured setting not above this one; a constant operation has only its own."""
    below = [c for c in computation.measured if _setting(c) <= setting]
    return max(below, key=_setting) if below else min(computation.measured, key=_setting)


def _spread(dag: Dag, by_kind: list[Choice]) -> tuple[Choice, ...]:
    return tuple(by_kind[kind] for kind in dag.kind)


def _least_energy_in_time(dag: Dag, plans: Iterable[tuple[Choice, ...]], deadline_s: float) -> tuple[Choice, ...]:
    """The least energy among the plans in time, blocking power until the deadline included; else the
    fastest."""
    best: tuple[bool, float, tuple[Choice, ...]] | None = None
    for plan in plans:
        end_s = float(finish_times(dag, np.array([c.time_s for c in plan])).max())
        effective_j = sum(dag.computation(op).effective_j(choice) for op, choice in enumerate(plan))
        late = end_s > deadline_s
        rank = (late, end_s if late else effective_j, plan)
        if best is None or rank[:2] < best[:2]:
            best = rank
    if best is None:
        raise ValueError("no plan to choose from")
    return best[2]
