"""What the policies need of the world, as small protocols; implementations do not inherit them."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from control_plane.domain import Load, Shape


class GpuError(RuntimeError):
    """A GPU's driver did not do what was asked; the message names the GPU. Subclasses say what to do about it."""


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
    APPLICATION = "application"
    OTHER = "other"


class Gpu(Protocol):
    """One GPU's driver: simulated hardware and NVML look the same from here. Every call may raise GpuError."""

    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    def supported_freqs_mhz(self) -> Sequence[int]:
        """Ascending. Empty where clocks cannot be set."""
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
        """A counter since some moment of the driver's choice; it may restart from zero."""
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
