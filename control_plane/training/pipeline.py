"""Pipeline schedules: the order in which every stage runs its instructions, and the DAG that follows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.training.computation import Computation, computation_of, constant
from control_plane.training.dag import CycleError, Dag, Task, dag_of
from control_plane.training.profile import INSTRUCTIONS, Choice, Profile

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

FORWARD, BACKWARD, RECOMPUTE, BACKWARD_INPUT, BACKWARD_WEIGHT = (
    "forward",
    "backward",
    "recompute",
    "backward_input",
    "backward_weight",
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One entry of a stage's program."""

    name: str
    microbatch: int
    chunk: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Every stage's program in execution order; chunk c of stage s is virtual stage c·stages + s."""

    name: str
    microbatches: int
    chunks: int
    order: tuple[tuple[Instruction, ...], ...]

    @property
    def stages(self) -> int:
        return len(self.order)


def gpipe(stages: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards in reverse (GPipe)."""
    _check_shape(stages, microbatches)
    program = tuple(Instruction(FORWARD, m) for m in range(microbatches)) + tuple(
        Instruction(BACKWARD, m) for m in reversed(range(microbatches))
    )
    return Schedule("gpipe", microbatches, 1, (program,) * stages)


def one_f_one_b(stages: int, microbatches: int) -> Schedule:
    """Warm up with one forward per later stage, then alternate (PipeDream-Flush)."""
    _check_shape(stages, microbatches)
    order = []
    for stage in range(stages):
        warmup = min(stages - 1 - stage, microbatches)
        program = [Instruction(FORWARD, m) for m in range(warmup)]
        for m in range(microbatches):
            if m + warmup < microbatches:
                program.append(Instruction(FORWARD, m + warmup))
            program.append(Instruction(BACKWARD, m))
        order.append(tuple(program))
    return Schedule("1f1b", microbatches, 1, tuple(order))


def early_recompute_1f1b(stages: int, microbatches: int) -> Schedule:
    """1F1B that recomputes activations while the gradient is on its way; the last stage keeps its own."""
    plain = one_f_one_b(stages, microbatches)
    order = [
        tuple(
            step
            for instruction in program
            for step in (
                (Instruction(RECOMPUTE, instruction.microbatch), instruction)
                if instruction.name == BACKWARD and stage < stages - 1
                else (instruction,)
            )
        )
        for stage, program in enumerate(plain.order)
    ]
    return Schedule("early-recompute-1f1b", microbatches, 1, tuple(order))


def interleaved_1f1b(stages: int, microbatches: int, chunks: int) -> Schedule:
    """1F1B over `chunks` model chunks per stage, micro-batches in groups of `stages` (Megatron-LM)."""
    _check_shape(stages, microbatches)
    if chunks < 1:
        raise ValueError(f"chunks must be at least 1, got {chunks}")
    if chunks == 1:
        return one_f_one_b(stages, microbatches)
    if microbatches % stages:
        raise ValueError(f"interleaved 1F1B needs microbatches in groups of {stages}, got {microbatches}")
    units = microbatches * chunks

    def unit(k: int, forward: bool) -> Instruction:
        group, place = divmod(k, stages * chunks)
        chunk = place // stages
        microbatch = group * stages + place % stages
        return (
            Instruction(FORWARD, microbatch, chunk)
            if forward
            else Instruction(BACKWARD, microbatch, chunks - 1 - chunk)
        )

    order = []
    for stage in range(stages):
        warmup = min(2 * (stages - stage - 1) + (chunks - 1) * stages, units)
        if microbatches == stages:
            warmup = units
        program = [unit(k, True) for k in range(warmup)]
        for k in range(units):
            if k + warmup < units:
                program.append(unit(k + warmup, True))
            program.append(unit(k, False))
        order.append(tuple(program))
    return Schedule("interleaved-1f1b", microbatches, chunks, tuple(order))


def zero_bubble(stages: int, microbatches: int) -> Schedule:
    """Split backward: weight gradients wait `stage` micro-batches and fill the cool-down (ZB-H1)."""
    _check_shape(stages, microbatches)
    order = []
    for stage in range(stages):
        warmup = min(stages - stage, microbatches)
        program = [Instruction(FORWARD, m) for m in range(warmup)]
        for m in range(microbatches):
            program.append(Instruction(BACKWARD_INPUT, m))
            if m >= stage:
                program.append(Instruction(BACKWARD_WEIGHT, m - stage))
            if m + warmup < microbatches:
                program.append(Instruction(FORWARD, m + warmup))
        program.extend(Instruction(BACKWARD_WEIGHT, m) for m in range(max(0, microbatches - stage), microbatches))
        order.append(tuple(program))
    return Schedule("zero-bubble", microbatches, 1, tuple(order))


def user_order(order: Sequence[Sequence[Instruction]], name: str = "user") -> Schedule:
    """A user's own program per stage; no stage may run an (instruction, micro-batch, chunk) twice."""
    if not order or not any(order):
        raise ValueError("the order names no stage with an instruction")
    for stage, program in enumerate(order):
        for position, step in enumerate(program):
            where = f"stage {stage}, position {position}"
            if step.name not in INSTRUCTIONS:
                raise ValueError(
                    f"{where}: unknown instruction {step.name!r}, expected one of {', '.join(INSTRUCTIONS)}"
                )
            if step.microbatch < 0 or step.chunk < 0:
                raise ValueError(f"{where}: micro-batch and chunk must be 0 or more, got {step}")
        if len(set(program)) < len(program):
            twice = next(step for i, step in enumerate(program) if step in program[:i])
            raise ValueError(f"stage {stage} runs {twice.name} {twice.microbatch} twice")
    steps = [step for program in order for step in program]
    return Schedule(
        name=name,
        microbatches=1 + max(step.microbatch for step in steps),
        chunks=1 + max(step.chunk for step in steps),
        order=tuple(tuple(program) for program in order),
    )


def schedule_named(name: str, stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """The schedule a configuration names; the error lists the names."""
    plain = {
        "gpipe": gpipe,
        "1f1b": one_f_one_b,
        "early-recompute-1f1b": early_recompute_1f1b,
        "zero-bubble": zero_bubble,
    }
    if name == "interleaved-1f1b":
        return interleaved_1f1b(stages, microbatches, chunks)
    if name not in plain:
        raise ValueError(f"unknown schedule {name!r}, expected one of {', '.join([*plain, 'interleaved-1f1b'])}")
    if chunks != 1:
        raise ValueError(f"schedule {name!r} has one chunk per stage, got chunks {chunks}; use interleaved-1f1b")
    return plain[name](stages, microbatches)


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
    for task, op in tuple(place.items()):
        for needed in _needs(task, schedule, place):
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


def _needs(task: Task, schedule: Schedule, place: Mapping[Task, int]) -> list[Task]:
    """What must be done before the task may start, its stage's program order aside."""
    virtual = task.chunk * schedule.stages + task.stage
    last = schedule.chunks * schedule.stages - 1

    def at(virtual_stage: int, *names: str) -> list[Task]:
        chunk, stage = divmod(virtual_stage, schedule.stages)
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


def _check_shape(stages: int, microbatches: int) -> None:
    for name, number in (("stages", stages), ("microbatches", microbatches)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
