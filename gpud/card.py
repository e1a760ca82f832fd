"""One GPU as gpud holds it: what is in force, what it last showed, and the thread that alone calls its driver.

``bring`` sets whatever the lease book wants when the thread gets to it, so the newest target wins and an older one is
never replayed. The record on disk is written before the first set and removed after the last reset.
"""

import logging
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from actors.gpu.driver_thread import HUNG_S, DriverThread
from actors.gpu.energy_meter import EnergyMeter
from actors.gpu.readback import Verdict, step_of
from control_plane.leases import DEFAULT, Hold
from control_plane.ports import (
    Feature,
    Gpu,
    GpuError,
    GpuLostError,
    GpuNotSupportedError,
    GpuPermissionError,
    GpuSample,
    NoGpuError,
)
from gpud.records import Record, Records

log = logging.getLogger(__name__)


class NotOursError(GpuError):
    """A MIG or shared GPU, which nobody may set."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change about a GPU."""

    name: str
    clocks_mhz: tuple[int, ...]
    limits_w: tuple[float, float, float] | None
    features: frozenset[Feature]

    @property
    def step_mhz(self) -> int:
        return step_of(self.clocks_mhz)

    def at_most(self, freq_mhz: int) -> int:
        """The highest supported clock not above this one."""
        return self.clocks_mhz[max(0, bisect_right(self.clocks_mhz, freq_mhz) - 1)]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a GPU, in monotonic seconds. ``energy`` is the meter after it."""

    at_s: float
    sample: GpuSample
    energy: EnergyMeter
    energy_at_s: float
    """When the counter was asked; it may not be asked at every look."""
    not_ours: str | None


@dataclass(frozen=True, slots=True)
class Brought:
    """What ``bring`` did. ``error`` None: ``target`` is in force now; ``changed``: the driver was called."""

    target: Hold
    before: Hold | None
    before_mhz: int | None
    changed: bool
    error: GpuError | ValueError | OSError | None
    driver_s: float = 0.0


class Card:
    """``wanted`` says what the book wants of this GPU at the moment it is asked, ``moves_often`` whether it is under a
    schedule lease: then nobody reads back."""

    def __init__(
        self,
        gpu: Gpu,
        wanted: Callable[[str], tuple[str, Hold]],
        moves_often: Callable[[str], bool],
        records: Records,
        left: Record | None,
        boot_id: str,
        hung_s: float = HUNG_S,
    ) -> None:
        self.uuid = gpu.uuid
        self.thread = DriverThread(gpu, f"GPU {gpu.uuid}", hung_s)
        self._wanted, self._moves_often = wanted, moves_often
        self._records, self._boot_id = records, boot_id
        self._record = left
        self.in_force: Hold | None = None if left is not None else DEFAULT
        """What it was last set to by us; None: not known."""
        self.facts: Facts | None = None
        self.last: Look | None = None
        self.verdict: Verdict | None = None
        self.set_at_s = time.monotonic()
        """When it was last set: the clock follows only after a while."""
        self.listed = True
        """Whether the driver lists it."""
        self._silence: str | None = None
        self.denied: str | None = None
        """Why we may read it but not set it, where the driver has said so."""

    def wanted(self) -> tuple[str, Hold]:
        """(owner, target) now."""
        return self._wanted(self.uuid)

    @property
    def lost(self) -> str | None:
        """Why the GPU counts as gone; None where it does not."""
        return self._silence if self.listed else f"GPU {self.uuid}: the driver does not list it any more"

    @property
    def hangs(self) -> bool:
        return self.thread.hangs

    @property
    def owes_a_reset(self) -> bool:
        """Something that we set is not known to be undone."""
        return self._record is not None

    # What follows runs in the card's thread only.

    def learn(self, gpu: Gpu) -> Facts:
        """Raises GpuError."""
        limits_w = None
        try:
            limits_w = gpu.power_limits_w()
        except GpuNotSupportedError:
            log.info("GPU %s: its power cannot be limited", self.uuid)
        self.facts = Facts(gpu.name, tuple(gpu.supported_freqs_mhz()), limits_w, gpu.features())
        return self.facts

    def look(self, gpu: Gpu) -> Look:
        """Raises GpuError where the GPU does not answer at all."""
        try:
            if not self.listed:
                raise GpuLostError(f"GPU {self.uuid}: the driver does not list it any more")
            if self.facts is None:
                self.learn(gpu)
            sample = gpu.sample()
            counter_j = self._counter_j(gpu)
            not_ours = gpu.why_not_ours()
        except (GpuLostError, NoGpuError) as error:
            self._silence = str(error)
            raise
        self._silence = None
        now_s = time.monotonic()
        energy_at_s = now_s - (0.0 if counter_j is None else gpu.energy_age_s())
        meter = EnergyMeter() if self.last is None else self.last.energy
        self.last = Look(now_s, sample, meter.seen(now_s, counter_j, sample.power_w), energy_at_s, not_ours)
        return self.last

    def _counter_j(self, gpu: Gpu) -> float | None:
        try:
            return gpu.energy_j()
        except (GpuLostError, NoGpuError):
            raise
        except GpuError as error:
            log.debug("%s", error)
            return None

    def bring(self, gpu: Gpu) -> Brought:
        """Set the GPU to what is wanted now. A target that is in force already costs no call."""
        owner, target = self.wanted()
        before = self.in_force
        if before == target:
            if target == DEFAULT and not owner:
                self._forget()
            return Brought(target, before, None, False, None)
        before_mhz = None if self._moves_often(self.uuid) else self._mhz(gpu)
        began_s = time.monotonic()
        try:
            if target != DEFAULT:
                self._check_ours(gpu)
                self._remember(gpu, owner, target)
                began_s = time.monotonic()
            error, something_set = self._set(gpu, target, before)
        except (GpuError, OSError) as failed:
            # Nothing was set: what is in force stays.
            return Brought(target, before, before_mhz, True, failed, time.monotonic() - began_s)
        self.set_at_s = time.monotonic()
        driver_s = self.set_at_s - began_s
        self._settle_account(owner, target, before if not something_set else None, error)
        return Brought(target, before, before_mhz, True, error, driver_s)

    def _check_ours(self, gpu: Gpu) -> None:
        """Before the first set of a lease: somebody may have come to the GPU since the last look."""
        if self._record is not None:
            return
        why = gpu.why_not_ours()
        if why is not None:
            raise NotOursError(f"GPU {self.uuid}: {why}")

    def _mhz(self, gpu: Gpu) -> int | None:
        try:
            return gpu.freq_mhz()
        except GpuError:
            return None

    def _set(self, gpu: Gpu, target: Hold, before: Hold | None) -> tuple[GpuError | ValueError | None, bool]:
        """Each domain by itself, the clock first; the first error, and whether anything was set."""
        record = self._record
        first: GpuError | ValueError | None = None
        done = False
        if before is None or target.freq_mhz != before.freq_mhz:
            try:
                if target.freq_mhz is not None:
                    gpu.lock_freq(target.freq_mhz)
                elif record is not None and record.clock:
                    gpu.reset_freq()
                done = True
            except (GpuError, ValueError) as error:
                first = error
        if before is None or target.power_w != before.power_w:
            try:
                if target.power_w is not None:
                    gpu.set_power_limit(target.power_w)
                elif record is not None and record.power_before_w is not None:
                    gpu.set_power_limit(record.power_before_w)
                done = True
            except (GpuError, ValueError) as error:
                first = first or error
        return first, done

    def _settle_account(self, owner: str, target: Hold, before: Hold | None, error: Exception | None) -> None:
        """``before``: what is still in force where everything was refused; None where it is not known."""
        if error is None:
            self.in_force, self.denied = target, None
            if target == DEFAULT and not owner:
                self._forget()
            return
        if isinstance(error, GpuPermissionError):
            self.denied = str(error)
        if isinstance(error, GpuLostError | NoGpuError):
            self._silence = str(error)
        refused = isinstance(error, GpuPermissionError | GpuNotSupportedError | ValueError)
        # A refused call has set nothing. Another failure may have, and both domains may differ.
        self.in_force = before if refused else None

    def _remember(self, gpu: Gpu, owner: str, target: Hold) -> None:
        """On disk before it happens. Raises GpuError where the limit to go back to cannot be read, and OSError."""
        known = self._record or Record(self.uuid, owner, self._boot_id, False, None)
        wanted = known
        if target.freq_mhz is not None and not known.clock:
            wanted = replace(wanted, clock=True, lowest_mhz=self._lowest_mhz(), highest_mhz=target.freq_mhz)
        if target.power_w is not None and known.power_before_w is None:
            wanted = replace(wanted, power_before_w=gpu.power_limit_w())
        if wanted != self._record:
            self._records.write(replace(wanted, owner=owner, boot_id=self._boot_id))
            self._record = wanted

    def prepare(self, gpu: Gpu) -> None:
        """For a schedule lease: the record is on disk before its first set, so that the set is quick."""
        owner, _ = self.wanted()
        self._remember(gpu, owner, Hold(self._lowest_mhz() or 1))

    def reset_whatever_is_set(self, gpu: Gpu) -> None:
        """An operator's explicit wish: also what somebody else has locked. Raises GpuError."""
        gpu.reset_freq()

    def _lowest_mhz(self) -> int | None:
        return self.facts.clocks_mhz[0] if self.facts and self.facts.clocks_mhz else None

    def _forget(self) -> None:
        if self._record is None:
            return
        try:
            self._records.remove(self.uuid)
            self._record = None
        except OSError as error:
            log.error("the record of %s is not removed, so the next start resets it once more: %s", self.uuid, error)
