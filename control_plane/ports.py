"""What the policies need of the world, as small protocols; implementations do not inherit them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from control_plane.domain import Load, Shape


class GpuError(RuntimeError):
    """A GPU's driver did not do what was asked; the message names the GPU. Subclasses say what to do about it."""


class NoGpuError(GpuError):
    """No driver is loaded, or none of its library is here: the node counts as one without GPUs until it is."""


class GpuLostError(GpuError):
    """The GPU is gone (fallen off the bus): drop this one, the others go on."""


class GpuPermissionError(GpuError):
    """The process may read this GPU but not set it: monitor only."""


class GpuNotSupportedError(GpuError):
    """This GPU or driver has no such feature: do without it."""


class GpuBusyError(GpuError):
    """The driver did not answer in time or reported a passing fault: try again, a bounded number of times."""


class ClockEvent(StrEnum):
    """Why a GPU runs below the clock it was allowed; the members follow NVML's clock-event reasons."""

    IDLE = "idle"
    POWER_CAP = "power_cap"
    THERMAL = "thermal"
    POWER_BRAKE = "power_brake"
    HARDWARE_SLOWDOWN = "hardware_slowdown"
    """The hardware slows down by itself, and the driver does not say whether for heat or for power."""
    APPLICATION = "application"
    OTHER = "other"


CAPS = frozenset({ClockEvent.POWER_CAP, ClockEvent.THERMAL, ClockEvent.POWER_BRAKE, ClockEvent.HARDWARE_SLOWDOWN})
"""The events that hold a clock below what was asked although the GPU works."""


class Feature(StrEnum):
    """What a GPU and its driver can do; what is missing is done without."""

    CLOCK_LOCK = "clock_lock"
    POWER_LIMIT = "power_limit"
    POWER = "power"
    INSTANT_POWER = "instant_power"
    ENERGY = "energy"
    EVENTS = "events"
    TEMPERATURE = "temperature"
    UTILISATION = "utilisation"


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One look at a GPU, by calls that cost microseconds; None where the GPU or its driver does not tell."""

    freq_mhz: int | None = None
    power_w: float | None = None
    """Now, where the driver tells it; else what it calls the power, often an average over a second."""
    average_power_w: float | None = None
    temperature_c: float | None = None
    utilisation_ratio: float | None = None
    power_limit_w: float | None = None
    events: frozenset[ClockEvent] | None = None


class Gpu(Protocol):
    """One GPU's driver: simulated hardware and NVML look the same from here. Every call may raise GpuError."""

    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    def supported_freqs_mhz(self) -> Sequence[int]:
        """Ascending. Empty where clocks cannot be set."""
        ...

    def features(self) -> frozenset[Feature]:
        """What it can do, as far as is known by now."""
        ...

    def why_not_ours(self) -> str | None:
        """Why nobody may set this GPU (it is shared, or cut into MIG instances); None where one may."""
        ...

    def sample(self) -> GpuSample:
        """Everything that is quick to read, at once. Raises GpuLostError; what else fails is None."""
        ...

    def lock_freq(self, max_mhz: int) -> None:
        """Allow clocks up to this one. Raises ValueError outside the supported range."""
        ...

    def reset_freq(self) -> None: ...
    def freq_mhz(self) -> int:
        """The clock that runs now."""
        ...

    def locked_mhz(self) -> int | None:
        """The highest clock the hardware says it may take; None where it cannot tell (NVML has no such getter)."""
        ...

    def power_w(self) -> float: ...
    def energy_j(self) -> float:
        """A counter since some moment of the driver's choice; it may restart from zero. Reading it may cost
        milliseconds, so a driver asks the hardware at most ten times a second."""
        ...

    def energy_age_s(self) -> float:
        """How old is what ``energy_j`` said last."""
        ...

    def power_limits_w(self) -> tuple[float, float, float]:
        """(lowest, default, highest) power limit that may be set."""
        ...

    def power_limit_w(self) -> float: ...
    def set_power_limit(self, power_w: float) -> None:
        """Raises ValueError outside ``power_limits_w``."""
        ...

    def reset_power_limit(self) -> None: ...
    def clock_events(self) -> frozenset[ClockEvent]:
        """Why the clock is below what is allowed; empty where nothing holds it down."""
        ...


class GpuNode(Protocol):
    """The GPUs of one node. Opened by name of a driver (``gpu.driver``), never by naming an implementation."""

    def gpus(self) -> Sequence[Gpu]: ...
    def uuid_of(self, ray_index: int) -> str:
        """The UUID of the GPU that Ray calls by this index. Raises GpuError where there is none."""
        ...

    def reap(self) -> int:
        """Free what processes that are gone still hold, where the driver does not do it by itself; how many."""
        ...

    def close(self) -> None: ...


class EnergyProfile(Protocol):
    """What a replica of a shape does under a load."""

    @property
    def name(self) -> str: ...
    @property
    def tps(self) -> Sequence[int]: ...
    @property
    def freqs_mhz(self) -> Sequence[int]: ...
    def power_w(self, shape: Shape, load: Load) -> float:
        """Watts of the whole replica (all its GPUs) under this load, its idle power included."""
        ...

    def meets_slo(self, shape: Shape, load: Load) -> bool: ...
    def max_load(self, shape: Shape, mix: Load) -> float:
        """The largest factor by which ``mix`` may be scaled on one replica so that it still meets the SLO."""
        ...
