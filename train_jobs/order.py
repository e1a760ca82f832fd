"""The true order of a rank's computations: what it registered is what it runs, or it is told where the two part."""

from collections.abc import Mapping, Sequence

from control_plane.training.schedules import Instruction, Schedule, user_order


class SessionError(ValueError):
    """The session is used for something else than it was made for; the message says what was expected."""


class RankOrder:
    """One rank's program of one iteration, and how far the iteration has come."""

    def __init__(self, program: Sequence[Instruction], rank: int) -> None:
        self.program, self.rank = tuple(program), rank
        self._place, self._running = 0, False
        if not self.program:
            raise SessionError(f"rank {rank} registers no computation")

    def begin(self, step: Instruction) -> int:
        """The place of this computation in the program. Raises SessionError where another one is due."""
        if self._running:
            raise SessionError(
                f"rank {self.rank} begins {told(step)} before {told(self.program[self._place])} has ended"
            )
        due = self.program[self._place] if self._place < len(self.program) else None
        if step is not due and step != due:
            expected = "the end of the iteration" if due is None else told(due)
            raise SessionError(
                f"rank {self.rank} runs {told(step)} where the registered order has {expected} "
                f"(computation {self._place} of {len(self.program)})"
            )
        self._running = True
        return self._place

    def end(self, step: Instruction) -> int:
        """The place of the computation that is next, 0 after the last. Raises SessionError where ``step`` does not
        run."""
        due = self.program[self._place] if self._running else None
        if due is None or (step is not due and step != due):
            raise SessionError(f"rank {self.rank} ends {told(step)}, which has not begun")
        self._running = False
        self._place += 1
        return self._place % len(self.program)

    def end_iteration(self) -> None:
        """Raises SessionError where computations of the program are missing."""
        if self._running or self._place < len(self.program):
            due = self.program[self._place]
            raise SessionError(
                f"rank {self.rank} ends an iteration after {self._place} of {len(self.program)} computations; "
                f"{told(due)} is due"
            )
        self._place = 0


def whole_order(programs: Mapping[int, Sequence[Instruction]], ranks: int, name: str = "user") -> Schedule:
    """The pipeline's order from every rank's own. Raises SessionError where a rank is missing or surplus, or a program
    cannot be."""
    missing = sorted(set(range(ranks)) - set(programs))
    if missing:
        raise SessionError(f"rank {missing[0]} of {ranks} is missing: every rank of the pipeline registers its order")
    surplus = sorted(set(programs) - set(range(ranks)))
    if surplus:
        raise SessionError(f"rank {surplus[0]} is not one of the pipeline's {ranks} ranks, 0 to {ranks - 1}")
    try:
        return user_order([tuple(programs[rank]) for rank in range(ranks)], name)
    except ValueError as error:
        raise SessionError(str(error)) from error


def told(step: Instruction) -> str:
    chunk = f" of chunk {step.chunk}" if step.chunk else ""
    return f"{step.name} {step.microbatch}{chunk}"
