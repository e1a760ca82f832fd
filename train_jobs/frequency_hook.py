"""Runs a rank's clock schedule inside its worker: whole schedules in, single clocks out, no call per micro-batch.

The clock for the next computation is asked for as soon as the last one has ended, so that a wait hides its settling.
Clocks are lowered only under a live lease; without one the GPU runs at full clock.
"""

from collections.abc import Sequence
from typing import Protocol

from actors.training_messages import ClockStep


class Clocked(Protocol):
    """A GPU whose clock is ours to move while the lease lives."""

    def set_clock(self, freq_mhz: int, at_ns: int) -> None: ...
    def target_mhz(self) -> int: ...


class Leased(Protocol):
    """Says whether clocks may be lowered now."""

    def may_lower(self) -> bool: ...


class FrequencyHook:
    """``program`` is what the rank runs in one iteration, in order; a schedule for another program is refused."""

    def __init__(self, gpu: Clocked, lease: Leased, program: Sequence[tuple[str, int]], full_clock_mhz: int) -> None:
        self._gpu, self._lease, self._full_clock_mhz = gpu, lease, full_clock_mhz
        self._place = {step: number for number, step in enumerate(program)}
        self._clocks_mhz = [full_clock_mhz] * len(program)

    def apply(self, steps: Sequence[ClockStep], at_ns: int) -> None:
        """From now on run these clocks. Raises ValueError where they are not for this rank's program."""
        asked = [(step.instruction, step.microbatch) for step in steps]
        if asked != list(self._place):
            raise ValueError(f"the schedule runs {asked[:4]}… where this rank runs {list(self._place)[:4]}…")
        self._clocks_mhz = [step.freq_mhz for step in steps]
        self._want(0, at_ns)

    def begins(self, instruction: str, microbatch: int, at_ns: int) -> None:
        """Somebody may have reset the clock since it was asked for."""
        self._want(self._place[instruction, microbatch], at_ns)

    def ended(self, instruction: str, microbatch: int, at_ns: int) -> None:
        self._want((self._place[instruction, microbatch] + 1) % len(self._clocks_mhz), at_ns)

    def _want(self, place: int, at_ns: int) -> None:
        freq_mhz = self._clocks_mhz[place] if self._lease.may_lower() else self._full_clock_mhz
        if self._gpu.target_mhz() != freq_mhz:
            self._gpu.set_clock(freq_mhz, at_ns)
