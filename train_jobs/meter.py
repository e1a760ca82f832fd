"""Time and energy of a rank's computations, from a clock and the GPU's energy counter at their beginnings and ends."""

import time
from collections.abc import Callable
from typing import NamedTuple

from control_plane.ports import Gpu
from control_plane.training.schedules import Instruction


class Reading(NamedTuple):
    """A GPU at one moment. Made twice for every computation, so it is a kind of tuple that is made quickly."""

    at_ns: int
    energy_j: float
    """A counter; it may restart from zero."""
    freq_mhz: int


class MeasuredStep(NamedTuple):
    """One computation as it ran."""

    step: Instruction
    begin_ns: int
    end_ns: int
    energy_j: float
    freq_mhz: int
    """The clock it ended with."""
    settled: bool
    """It had that clock from the beginning: its time is that of the clock."""

    @property
    def time_s(self) -> float:
        return (self.end_ns - self.begin_ns) * 1e-9


class Meter:
    """``read`` reads the GPU now. Whoever knows a moment better than now, as where work is charged to a GPU instead of
    run, hands its own reading in."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read
        self._began: Reading | None = None
        self._steps: list[MeasuredStep] = []

    def now(self) -> Reading:
        return self._read()

    def begin(self, at: Reading) -> None:
        self._began = at

    def end(self, step: Instruction, at: Reading) -> MeasuredStep:
        """Raises ValueError where nothing has begun."""
        if self._began is None:
            raise ValueError(f"{step} ends and nothing has begun")
        measured = between(step, self._began, at)
        self._began = None
        self._steps.append(measured)
        return measured

    def take(self) -> tuple[MeasuredStep, ...]:
        """What was measured since the last call, in order."""
        taken, self._steps = tuple(self._steps), []
        return taken


def between(step: Instruction, began: Reading, ended: Reading) -> MeasuredStep:
    """A counter that restarted in between counts from its restart."""
    energy_j = ended.energy_j - began.energy_j if ended.energy_j >= began.energy_j else ended.energy_j
    settled = began.freq_mhz == ended.freq_mhz
    return MeasuredStep(step, began.at_ns, ended.at_ns, energy_j, ended.freq_mhz, settled)


def reader_of(gpu: Gpu, clock_ns: Callable[[], int] = time.monotonic_ns) -> Callable[[], Reading]:
    """Reads a GPU through the hardware port."""
    return lambda: Reading(clock_ns(), gpu.energy_j(), gpu.freq_mhz())
