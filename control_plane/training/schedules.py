"""Pipeline schedules: the order in which every stage runs its instructions. Plain Python, so whoever only checks a job
loads no solver."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.training.profile import INSTRUCTIONS

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


def _check_shape(stages: int, microbatches: int) -> None:
    for name, number in (("stages", stages), ("microbatches", microbatches)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
