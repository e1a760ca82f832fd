"""The DAG of one iteration, from a schedule and a profile."""

import math
from collections.abc import Mapping

from control_plane.training.computation import Computation, computation_of, constant
from control_plane.training.dag import CycleError, Dag, Task, dag_of
from control_plane.training.profile import Choice, Profile
from control_plane.training.schedules import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    RECOMPUTE,
    Instruction,
    Schedule,
    early_recompute_1f1b,
    gpipe,
    interleaved_1f1b,
    one_f_one_b,
    schedule_named,
    user_order,
    zero_bubble,
)

__all__ = [
    "CycleError",
    "Dag",
    "Instruction",
    "Schedule",
    "Task",
    "build_dag",
    "early_recompute_1f1b",
    "gpipe",
    "interleaved_1f1b",
    "one_f_one_b",
    "schedule_named",
    "user_order",
    "zero_bubble",
]


def build_dag(
    schedule: Schedule,
    profile: Profile,
    blocking_power_w: float = 0.0,
    *,
    transfer_time_s: float = 0.0,
    transfer_energy_j: float = 0.0,
) -> Dag:
    """The DAG of one iteration; blocking power is per stage (all its GPUs), transfers take constant time.

    A chunk takes 1/chunks of its stage. Instructions the profile lacks are derived from those it has:
    recompute repeats the forward, a split backward takes half each.
    """
    if schedule.stages != profile.stages:
        raise ValueError(f"the schedule has {schedule.stages} stages, the profile {profile.stages}")
    for name, number in (("blocking_power_w", blocking_power_w), ("transfer_time_s", transfer_time_s)):
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {number}")
    tasks: list[Task] = []
    kind: list[int] = []
    computations: list[Computation] = []
    kinds: dict[tuple[int, str], int] = {}
    place: dict[Task, int] = {}
    edges: list[tuple[int, int]] = []
    for stage, program in enumerate(schedule.order):
        for position, step in enumerate(program):
            key = (stage, step.name)
            if key not in kinds:
                kinds[key] = len(computations)
                choices = _stage_choices(profile, stage, step.name, schedule.chunks)
                computations.append(computation_of(choices, blocking_power_w))
            task = Task(stage, step.name, step.microbatch, step.chunk)
            if position:
                edges.append((len(tasks) - 1, len(tasks)))
            place[task] = len(tasks)
            tasks.append(task)
            kind.append(kinds[key])
    transfer_kind = len(computations)
    if transfer_time_s > 0:
        computations.append(constant(transfer_time_s, transfer_energy_j))
    stages, last = schedule.stages, schedule.chunks * schedule.stages - 1
    for task, op in tuple(place.items()):
        for needed in _needs(task, stages, last, place):
            before = place[needed]
            if needed.stage == task.stage:
                if before > op:
                    edges.append((before, op))
            elif transfer_time_s > 0:
                edges += [(before, len(tasks)), (len(tasks), op)]
                tasks.append(Task(needed.stage, f"send_{needed.instruction}", needed.microbatch, needed.chunk))
                kind.append(transfer_kind)
            else:
                edges.append((before, op))
    return dag_of(tasks, computations, kind, edges, blocking_power_w * schedule.stages)


def _needs(task: Task, stages: int, last: int, place: Mapping[Task, int]) -> list[Task]:
    """What must be done before a task starts, its stage's program order aside; `last` is the last virtual stage."""
    virtual = task.chunk * stages + task.stage

    def at(virtual_stage: int, *names: str) -> list[Task]:
        chunk, stage = divmod(virtual_stage, stages)
        for name in names:
            found = Task(stage, name, task.microbatch, chunk)
            if found in place:
                return [found]
        raise ValueError(f"{task} needs {' or '.join(names)} {task.microbatch} on stage {stage}, which never runs it")

    match task.instruction:
        case "forward":
            return at(virtual - 1, FORWARD) if virtual > 0 else []
        case "recompute":
            return at(virtual, FORWARD)
        case "backward" | "backward_input":
            recompute = Task(task.stage, RECOMPUTE, task.microbatch, task.chunk)
            own = [recompute] if recompute in place else at(virtual, FORWARD)
            return own + (at(virtual + 1, BACKWARD, BACKWARD_INPUT) if virtual < last else [])
        case "backward_weight":
            return at(virtual, BACKWARD_INPUT)
        case other:
            raise ValueError(f"unknown instruction {other!r}")


def _stage_choices(profile: Profile, stage: int, instruction: str, chunks: int) -> tuple[Choice, ...]:
    derived = {RECOMPUTE: (FORWARD, 1.0), BACKWARD_INPUT: (BACKWARD, 0.5), BACKWARD_WEIGHT: (BACKWARD, 0.5)}
    source, share = (instruction, 1.0)
    if (stage, instruction) not in profile.choices and instruction in derived:
        source, share = derived[instruction]
    if (stage, source) not in profile.choices:
        raise ValueError(f"the profile has no {source!r} for stage {stage}, which the schedule runs")
    share /= chunks
    return tuple(
        Choice(c.freq_mhz, c.time_s * share, c.energy_j * share, c.power_limit_w)
        for c in profile.choices[(stage, source)]
    )
