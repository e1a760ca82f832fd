"""NVIDIA GPUs through NVML (nvidia-ml-py), behind the hardware port and by UUID.

Only documented behaviour is relied on: clocks are capped as (lowest supported, highest wanted), so that an idle GPU may
still drop; there is no getter for such a lock. A feature whose call answers "not supported" or is missing from the
library is done without. Calls block: whoever cannot wait asks through ``gpu_worker``.
"""

import logging
import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pynvml

from actors.gpu.nvml_errors import asked
from control_plane.ports import (
    ClockEvent,
    Feature,
    Gpu,
    GpuError,
    GpuLostError,
    GpuNotSupportedError,
    GpuSample,
    NoGpuError,
)

log = logging.getLogger(__name__)

ENERGY_EVERY_S = 0.1
"""The counter moves ten times a second and costs 3 ms to read on an H100 (p99 16 ms)."""

_EVENTS = {
    pynvml.nvmlClocksEventReasonGpuIdle: ClockEvent.IDLE,
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: ClockEvent.APPLICATION,
    pynvml.nvmlClocksEventReasonSwPowerCap: ClockEvent.POWER_CAP,
    pynvml.nvmlClocksEventReasonHwSlowdown: ClockEvent.HARDWARE_SLOWDOWN,
    pynvml.nvmlClocksEventReasonSyncBoost: ClockEvent.OTHER,
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: ClockEvent.THERMAL,
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: ClockEvent.THERMAL,
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: ClockEvent.POWER_BRAKE,
    pynvml.nvmlClocksEventReasonDisplayClockSetting: ClockEvent.OTHER,
}

Value = TypeVar("Value")


def _initialised() -> None:
    """Raises NoGpuError where no driver is loaded or its library is missing."""
    asked("NVML", pynvml.nvmlInit)


class NvmlGpu:
    """One GPU. What it cannot do is learnt from the driver's answers and remembered; the other calls go on."""

    def __init__(
        self,
        uuid: str,
        handle: object,
        allow_shared: bool = False,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.uuid, self.handle = uuid, handle
        self._allow_shared, self._monotonic_s = allow_shared, monotonic_s
        self._lacks: set[Feature] = set()
        self._clocks: tuple[int, ...] | None = None
        self._limits_w: tuple[float, float, float] | None = None
        self._name: str | None = None
        self._energy: tuple[float, float] | None = None
        """(joules, when), as read last."""

    @property
    def name(self) -> str:
        if self._name is None:
            try:
                self._name = str(self._ask("its name", lambda: pynvml.nvmlDeviceGetName(self.handle)))
            except GpuNotSupportedError:
                self._name = "NVIDIA GPU"
        return self._name

    def features(self) -> frozenset[Feature]:
        self.supported_freqs_mhz()
        return frozenset(Feature) - self._lacks

    def supported_freqs_mhz(self) -> Sequence[int]:
        if self._clocks is None:
            try:
                self._clocks = self._supported_clocks()
            except GpuNotSupportedError:
                self._clocks = ()
            if not self._clocks:
                self._lacks.add(Feature.CLOCK_LOCK)
        return () if Feature.CLOCK_LOCK in self._lacks else self._clocks

    def _supported_clocks(self) -> tuple[int, ...]:
        memory = self._ask("memory clocks", lambda: pynvml.nvmlDeviceGetSupportedMemoryClocks(self.handle))
        if not memory:
            return ()
        clocks = self._ask(
            "clocks", lambda: pynvml.nvmlDeviceGetSupportedGraphicsClocks(self.handle, max(int(mhz) for mhz in memory))
        )
        return tuple(sorted({int(mhz) for mhz in clocks}))

    def why_not_ours(self) -> str | None:
        if self._allow_shared:
            return None
        try:
            current, _ = self._ask("MIG mode", lambda: pynvml.nvmlDeviceGetMigMode(self.handle))
            if current == pynvml.NVML_DEVICE_MIG_ENABLE:
                return "it is cut into MIG instances, which share one clock; gpud --allow-shared sets it all the same"
        except GpuNotSupportedError:
            pass  # a GPU without MIG
        users = self._users()
        if len(users) > 1:
            shared = f"processes of {len(users)} users run on it (uids {', '.join(map(str, sorted(users)))})"
            return f"{shared}; gpud --allow-shared sets it all the same"
        return None

    def _users(self) -> set[int]:
        try:
            running = self._ask("processes", lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        except GpuNotSupportedError:
            return set()
        users = set()
        for process in running:
            try:
                users.add(Path(f"/proc/{process.pid}").stat().st_uid)
            except OSError:
                continue  # it has ended, or is of another PID namespace
        return users

    def lock_freq(self, max_mhz: int) -> None:
        """Rounded down to a supported clock. Raises ValueError outside the supported range."""
        clocks = self.supported_freqs_mhz()
        if not clocks:
            raise GpuNotSupportedError(f"GPU {self.uuid}: its clocks cannot be locked; limit its power instead")
        if not clocks[0] <= max_mhz <= clocks[-1]:
            raise ValueError(f"GPU {self.uuid}: {max_mhz} MHz is outside {clocks[0]}..{clocks[-1]} MHz")
        highest = clocks[bisect_right(clocks, max_mhz) - 1]
        self._do(
            Feature.CLOCK_LOCK,
            f"locking at {highest} MHz",
            lambda: pynvml.nvmlDeviceSetGpuLockedClocks(self._still_it(), clocks[0], highest),
        )

    def reset_freq(self) -> None:
        self._do(
            Feature.CLOCK_LOCK, "resetting its clock", lambda: pynvml.nvmlDeviceResetGpuLockedClocks(self._still_it())
        )

    def freq_mhz(self) -> int:
        return int(self._ask("SM clock", lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM)))

    def locked_mhz(self) -> int | None:
        """NVML has no getter for locked clocks."""
        return None

    def power_w(self) -> float:
        instant_w = self._field_w(pynvml.NVML_FI_DEV_POWER_INSTANT, Feature.INSTANT_POWER)
        return self._usage_w() if instant_w is None else instant_w

    def _usage_w(self) -> float:
        """An average over one second on Ampere and later, but for GA100 where it is instantaneous (NVML's manual)."""
        return float(self._do(Feature.POWER, "power", lambda: pynvml.nvmlDeviceGetPowerUsage(self.handle))) / 1000

    def _field_w(self, field: int, feature: Feature) -> float | None:
        """Each field has a return code of its own; None where this one is not there."""
        if feature in self._lacks:
            return None
        try:
            value = self._ask("power field", lambda: pynvml.nvmlDeviceGetFieldValues(self.handle, [field]))[0]
        except GpuNotSupportedError:
            self._lacks.add(feature)
            return None
        if value.nvmlReturn in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_INVALID_ARGUMENT):
            self._lacks.add(feature)
        return int(value.value.uiVal) / 1000 if value.nvmlReturn == pynvml.NVML_SUCCESS else None

    def energy_j(self) -> float:
        now_s = self._monotonic_s()
        if self._energy is None or now_s - self._energy[1] >= ENERGY_EVERY_S:
            counted = self._do(
                Feature.ENERGY, "energy counter", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)
            )
            self._energy = int(counted) / 1000, now_s
        return self._energy[0]

    def energy_age_s(self) -> float:
        return 0.0 if self._energy is None else self._monotonic_s() - self._energy[1]

    def power_limits_w(self) -> tuple[float, float, float]:
        if self._limits_w is None:
            low, high = self._do(
                Feature.POWER_LIMIT,
                "power limits",
                lambda: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(self.handle),
            )
            default = self._do(
                Feature.POWER_LIMIT,
                "default power limit",
                lambda: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(self.handle),
            )
            self._limits_w = low / 1000, default / 1000, high / 1000
        return self._limits_w

    def power_limit_w(self) -> float:
        limit = self._do(
            Feature.POWER_LIMIT, "power limit", lambda: pynvml.nvmlDeviceGetPowerManagementLimit(self.handle)
        )
        return int(limit) / 1000

    def set_power_limit(self, power_w: float) -> None:
        low_w, _, high_w = self.power_limits_w()
        if not (math.isfinite(power_w) and low_w <= power_w <= high_w):
            raise ValueError(f"GPU {self.uuid}: {power_w} W is outside {low_w:g}..{high_w:g} W")
        self._do(
            Feature.POWER_LIMIT,
            f"limiting it to {power_w:g} W",
            lambda: pynvml.nvmlDeviceSetPowerManagementLimit(self._still_it(), round(power_w * 1000)),
        )

    def reset_power_limit(self) -> None:
        self.set_power_limit(self.power_limits_w()[1])

    def clock_events(self) -> frozenset[ClockEvent]:
        try:
            bits = self._ask("clock events", lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle))
        except GpuNotSupportedError:
            # Drivers before 535 know the same bits by another name.
            bits = self._do(
                Feature.EVENTS,
                "clock events",
                lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle),
            )
        return frozenset(event for bit, event in _EVENTS.items() if bits & bit)

    def sample(self) -> GpuSample:
        instant_w = self._field_w(pynvml.NVML_FI_DEV_POWER_INSTANT, Feature.INSTANT_POWER)
        usage_w = self._known(Feature.POWER, self._usage_w)
        return GpuSample(
            self._known(None, self.freq_mhz),
            usage_w if instant_w is None else instant_w,
            usage_w,
            self._known(Feature.TEMPERATURE, self._temperature_c),
            self._known(Feature.UTILISATION, self._utilisation),
            self._known(Feature.POWER_LIMIT, self.power_limit_w),
            self._known(Feature.EVENTS, self.clock_events),
        )

    def _temperature_c(self) -> float:
        sensor = pynvml.NVML_TEMPERATURE_GPU
        try:
            return float(self._ask("temperature", lambda: pynvml.nvmlDeviceGetTemperatureV(self.handle, sensor)))
        except GpuNotSupportedError:
            return float(
                self._do(
                    Feature.TEMPERATURE, "temperature", lambda: pynvml.nvmlDeviceGetTemperature(self.handle, sensor)
                )
            )

    def _utilisation(self) -> float:
        rates = self._do(Feature.UTILISATION, "utilisation", lambda: pynvml.nvmlDeviceGetUtilizationRates(self.handle))
        return int(rates.gpu) / 100

    def _known(self, feature: Feature | None, read: Callable[[], Value]) -> Value | None:
        """None where the GPU does not tell; a GPU or a driver that is gone is told apart from that."""
        if feature in self._lacks:
            return None
        try:
            return read()
        except (GpuLostError, NoGpuError):
            raise
        except GpuError as error:
            if feature is None or feature not in self._lacks:
                log.warning("%s", error)
            return None

    def _still_it(self) -> object:
        """The handle, asked whether it is still this GPU's: a driver may count its GPUs anew. Raises GpuLostError."""
        try:
            if str(self._ask("its UUID", lambda: pynvml.nvmlDeviceGetUUID(self.handle))) != self.uuid:
                self.handle = self._ask("its handle", lambda: pynvml.nvmlDeviceGetHandleByUUID(self.uuid))
        except GpuNotSupportedError:
            raise GpuLostError(f"GPU {self.uuid}: the driver does not find it by its UUID") from None
        return self.handle

    def _do(self, feature: Feature, what: str, call: Callable[[], Value]) -> Value:
        """As ``_ask``; a feature that is not supported is remembered."""
        try:
            return self._ask(what, call)
        except GpuNotSupportedError:
            self._lacks.add(feature)
            raise

    def _ask(self, what: str, call: Callable[[], Value]) -> Value:
        return asked(f"GPU {self.uuid}, {what}", call)


class NvmlNode:
    """The NVIDIA GPUs of this node. Each look at ``gpus`` asks the driver anew, so that GPUs may come and go; one that
    does not answer is left out. Raises NoGpuError where no driver is loaded, again and again until one is."""

    def __init__(self, allow_shared: bool = False, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        """``allow_shared``: GPUs that are cut into MIG instances or used by several users may be set too."""
        self._allow_shared, self._monotonic_s = allow_shared, monotonic_s
        self._known: dict[str, NvmlGpu] = {}
        self._order: list[str] = []
        self._lock = threading.Lock()
        _initialised()

    def gpus(self) -> Sequence[Gpu]:
        with self._lock:
            found = self._handles()
            self._order = [uuid for uuid, _ in found]
            for uuid, handle in found:
                if uuid in self._known:
                    self._known[uuid].handle = handle
                else:
                    self._known[uuid] = NvmlGpu(uuid, handle, self._allow_shared, self._monotonic_s)
            return [self._known[uuid] for uuid in self._order]

    def _handles(self) -> list[tuple[str, object]]:
        try:
            count = int(asked("NVML, number of GPUs", pynvml.nvmlDeviceGetCount))
        except NoGpuError:
            # The driver was unloaded and is perhaps back.
            _initialised()
            count = int(asked("NVML, number of GPUs", pynvml.nvmlDeviceGetCount))
        found = []
        for index in range(count):
            try:
                handle = asked(f"NVML, GPU {index}", lambda index=index: pynvml.nvmlDeviceGetHandleByIndex(index))  # type: ignore[misc]
                uuid = str(asked(f"NVML, GPU {index}", lambda handle=handle: pynvml.nvmlDeviceGetUUID(handle)))  # type: ignore[misc]
            except NoGpuError:
                raise
            except GpuError as error:
                log.warning("%s: left out", error)
                continue
            found.append((uuid, handle))
        return found

    def uuid_of(self, ray_index: int) -> str:
        """Ray counts GPUs in the driver's order (by PCI bus); CUDA does so where CUDA_DEVICE_ORDER=PCI_BUS_ID."""
        handle = asked(f"NVML, GPU {ray_index}", lambda: pynvml.nvmlDeviceGetHandleByIndex(ray_index))
        return str(asked(f"NVML, GPU {ray_index}", lambda: pynvml.nvmlDeviceGetUUID(handle)))

    def reap(self) -> int:
        """The driver frees what dead processes held by itself."""
        return 0

    def close(self) -> None:
        """The library stays initialised: other parts of the process may use it."""
