"""Runs a rank's clock schedule inside its worker: whole schedules in, single clocks out, no call per micro-batch.

The clock for the next computation is asked for as soon as the last one has ended, so that a wait hides its settling.
Clocks are lowered only under a live lease; without one the GPU runs at full clock.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from control_plane.ports import Gpu, GpuError
from control_plane.training.job_spec import ScheduledStep
from control_plane.training.schedules import Instruction
from train_jobs.order import SessionError, told

log = logging.getLogger(__name__)


class ClockControl(Protocol):
    """A GPU whose clock is ours to move while the lease lives."""

    def set_clock(self, freq_mhz: int, at_ns: int) -> None: ...
    def target_mhz(self) -> int: ...


class Leased(Protocol):
    """Says whether clocks may be lowered now."""

    def may_lower(self) -> bool: ...


class PortClock:
    """A GPU behind the hardware port: clocks are set now, whatever the moment asked for. A GPU that refuses a clock is
    told to run at full clock; training goes on."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.full_clock_mhz = gpu.supported_freqs_mhz()[-1]
        self._asked_mhz = self.full_clock_mhz

    def set_clock(self, freq_mhz: int, at_ns: int) -> None:
        try:
            if freq_mhz >= self.full_clock_mhz:
                self._gpu.reset_freq()
            else:
                self._gpu.lock_freq(freq_mhz)
            self._asked_mhz = freq_mhz
        except (GpuError, ValueError) as error:
            log.error("GPU %s does not take %d MHz, full clock: %s", self._gpu.uuid, freq_mhz, error)
            self._reset()

    def target_mhz(self) -> int:
        """What the hardware says, else what it was last told."""
        try:
            locked_mhz = self._gpu.locked_mhz()
        except GpuError as error:
            log.warning("GPU %s does not say its clock: %s", self._gpu.uuid, error)
            return self._asked_mhz
        return self._asked_mhz if locked_mhz is None else locked_mhz

    def _reset(self) -> None:
        try:
            self._gpu.reset_freq()
            self._asked_mhz = self.full_clock_mhz
        except GpuError as error:
            log.error("GPU %s cannot be reset; its agent does so when the lease lapses: %s", self._gpu.uuid, error)


class ScheduledClock:
    """``program`` is what the rank runs in one iteration, in order; a schedule for another program is refused. Places
    are positions in it."""

    def __init__(
        self, control: ClockControl, lease: Leased, program: Sequence[Instruction], full_clock_mhz: int
    ) -> None:
        self._control, self._lease, self._full_clock_mhz = control, lease, full_clock_mhz
        self._program = tuple(program)
        self._clocks_mhz = [full_clock_mhz] * len(self._program)
        self._moving = threading.Lock()

    def apply(self, steps: Sequence[ScheduledStep], at_ns: int) -> None:
        """From now on run these clocks. Raises SessionError where they are not for this rank's program, or are no
        clocks."""
        asked = [Instruction(step.instruction, step.microbatch, step.chunk) for step in steps]
        for place, (theirs, ours) in enumerate(zip(asked, self._program, strict=False)):
            if theirs != ours:
                raise SessionError(f"computation {place} of the schedule is {told(theirs)}, of this rank {told(ours)}")
        if len(asked) != len(self._program):
            raise SessionError(f"the schedule has {len(asked)} computations, this rank runs {len(self._program)}")
        for step in steps:
            if step.freq_mhz <= 0:
                raise SessionError(f"the schedule steers by power limit ({step.power_limit_w} W), this rank by clocks")
        self._clocks_mhz = [step.freq_mhz for step in steps]
        self.want(0, at_ns)

    def hold(self, freq_mhz: int, at_ns: int) -> None:
        """From now on run everything at this clock."""
        self._clocks_mhz = [freq_mhz] * len(self._program)
        self.want(0, at_ns)

    def want(self, place: int, at_ns: int) -> None:
        """The computation at this place runs next or begins now: somebody may have reset the clock meanwhile."""
        with self._moving:
            freq_mhz = self._clocks_mhz[place] if self._lease.may_lower() else self._full_clock_mhz
            if self._control.target_mhz() != freq_mhz:
                self._control.set_clock(freq_mhz, at_ns)

    def full(self, at_ns: int) -> None:
        """Full clock at once: the lease is lost or the session ends."""
        with self._moving:
            if self._control.target_mhz() != self._full_clock_mhz:
                self._control.set_clock(self._full_clock_mhz, at_ns)
