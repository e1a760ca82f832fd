"""Simulated GPUs of one node: the pure GPU model plus a clock, in a file that every process of the node maps.

As on real hardware the state outlives whoever set it: an agent killed with SIGKILL leaves its clocks locked and the
energy counters go on. Each change is read, integrated and written under a file lock.
"""

import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from control_plane.hardware.gpu_model import H100_SXM, IDLE, Activity, GpuSpec, GpuState
from control_plane.ports import ClockEvent, Feature, Gpu, GpuError, GpuSample

_MAGIC = b"wattray2"
_HEADER = struct.Struct("<8sqq")
_GPU = struct.Struct("<qqqqqqdddqd")
"""at_ns, freq, target, settles_at_ns, contexts, context's pid, sm, mem, energy_j, locks, power limit."""


class SimulatedNode:
    """The GPUs of one simulated node, behind ``ports.GpuNode``. ``create`` makes the file; the constructor maps it from
    any process. The GPU model lies beside it, so that every process charges the same one."""

    def __init__(self, path: Path, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.path, self._clock_ns = path, clock_ns
        self.spec = GpuSpec.from_json(_spec_file(path).read_text())
        self._tag = path.stem.removeprefix("gpus-")[:12] if path.stem.startswith("gpus-") else ""
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._thread_lock = threading.Lock()
        magic, self.count, _ = _HEADER.unpack_from(self._map)
        if magic != _MAGIC:
            raise ValueError(f"{path} is no simulated node")

    @classmethod
    def create(
        cls, path: Path, count: int, spec: GpuSpec = H100_SXM, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> Self:
        """A node of ``count`` idle GPUs at default clocks; one that exists already is opened as it is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            now_ns = clock_ns()
            fresh = GpuState.at_default(spec, now_ns)
            body = b"".join(_pack(fresh, 0) for _ in range(count))
            _write_whole(_spec_file(path), spec.to_json().encode())
            _write_whole(path, _HEADER.pack(_MAGIC, count, now_ns) + body)
        return cls(path, clock_ns)

    def close(self) -> None:
        self._map.close()
        self._file.close()

    def gpu(self, index: int) -> "SimulatedGpu":
        """Raises GpuError where the node has no such GPU."""
        return SimulatedGpu(self, index, self.uuid_of(index))

    def gpus(self) -> Sequence[Gpu]:
        return [self.gpu(index) for index in range(self.count)]

    def uuid_of(self, ray_index: int) -> str:
        """UUIDs differ from node to node. Raises GpuError where the node has no such GPU."""
        if not 0 <= ray_index < self.count:
            raise GpuError(f"the node has GPUs 0..{self.count - 1}, not {ray_index}")
        return "-".join(part for part in ("GPU-sim", self._tag, f"{ray_index:04d}") if part)

    def index_of(self, uuid: str) -> int:
        """Raises GpuError where the node has no such GPU."""
        for index in range(self.count):
            if self.uuid_of(index) == uuid:
                return index
        raise GpuError(f"node {self._tag or self.path} has no GPU {uuid}")

    def state(self, index: int) -> GpuState:
        """This GPU now, its energy integrated up to this moment."""
        with self._locked():
            return self._read(index)[0].advance(self.spec, self._clock_ns())

    def states(self) -> tuple[GpuState, ...]:
        with self._locked():
            now_ns = self._clock_ns()
            return tuple(self._read(index)[0].advance(self.spec, now_ns) for index in range(self.count))

    def set_activity(self, indices: Sequence[int], activity: Activity, at_ns: int | None = None) -> int:
        """The GPUs work like this from ``at_ns`` (now) on; returns the clock of the slowest, in MHz."""
        now_ns = self._clock_ns() if at_ns is None else at_ns
        slowest = self.spec.max_freq_mhz
        with self._locked():
            for index in indices:
                state, pid = self._read(index)
                state = state.with_activity(self.spec, now_ns, activity)
                slowest = min(slowest, state.freq_mhz)
                self._write(index, state, pid)
        return slowest

    def work(self, index: int, activity: Activity, at_ns: int) -> GpuState:
        """One GPU works like this from ``at_ns`` on; its state then, energy integrated up to it. A computation's
        energy is the difference between the states at its end and at its beginning."""
        with self._locked():
            state, pid = self._read(index)
            state = state.with_activity(self.spec, at_ns, activity)
            self._write(index, state, pid)
        return state

    def open_context(self, index: int, pid: int) -> None:
        with self._locked():
            state, _ = self._read(index)
            self._write(index, state.with_contexts(self.spec, self._clock_ns(), 1), pid)

    def close_context(self, index: int, pid: int) -> None:
        """Free the GPU if ``pid`` still holds it: a later process may have taken it over."""
        with self._locked():
            state, holder = self._read(index)
            if holder == pid:
                self._write(index, state.with_contexts(self.spec, self._clock_ns(), 0), 0)

    def reap(self) -> int:
        """Free GPUs whose process is gone, as a driver does; returns how many."""
        reaped = 0
        with self._locked():
            for index in range(self.count):
                state, pid = self._read(index)
                if pid and not Path(f"/proc/{pid}").exists():
                    self._write(index, state.with_contexts(self.spec, self._clock_ns(), 0), 0)
                    reaped += 1
        return reaped

    def lock_freq(self, index: int, freq_mhz: int, at_ns: int | None = None) -> None:
        """Lock at ``at_ns`` (now)."""
        now_ns = self._clock_ns() if at_ns is None else at_ns
        with self._locked():
            state, pid = self._read(index)
            self._write(index, state.locked(self.spec, now_ns, freq_mhz), pid)

    def set_power_limit(self, index: int, power_w: float) -> None:
        with self._locked():
            state, pid = self._read(index)
            self._write(index, state.limited(self.spec, self._clock_ns(), power_w), pid)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread_lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read(self, index: int) -> tuple[GpuState, int]:
        values = _GPU.unpack_from(self._map, _HEADER.size + index * _GPU.size)
        at_ns, freq_mhz, target_mhz, settles_at_ns, contexts, pid, sm, mem, energy_j, locks, limit_w = values
        activity = Activity(sm, mem)
        return GpuState(at_ns, freq_mhz, target_mhz, settles_at_ns, contexts, activity, energy_j, locks, limit_w), pid

    def _write(self, index: int, state: GpuState, pid: int) -> None:
        start = _HEADER.size + index * _GPU.size
        self._map[start : start + _GPU.size] = _pack(state, pid)


def _pack(state: GpuState, pid: int) -> bytes:
    return _GPU.pack(
        state.at_ns,
        state.freq_mhz,
        state.target_mhz,
        state.settles_at_ns,
        state.contexts,
        pid,
        state.activity.sm,
        state.activity.mem,
        state.energy_j,
        state.locks,
        state.limit_w,
    )


def _spec_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _write_whole(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


class SimulatedGpu:
    """One GPU of a simulated node, behind the same protocol as NVML."""

    def __init__(self, node: SimulatedNode, index: int, uuid: str) -> None:
        self._node, self._index, self.uuid = node, index, uuid

    @property
    def name(self) -> str:
        return self._node.spec.name

    def supported_freqs_mhz(self) -> Sequence[int]:
        return self._node.spec.freqs_mhz

    def features(self) -> frozenset[Feature]:
        return frozenset(Feature) - {Feature.TEMPERATURE}

    def why_not_ours(self) -> str | None:
        return None

    def sample(self) -> GpuSample:
        state, spec = self._state(), self._node.spec
        power_w = state.power_w(spec)
        busy = state.activity.sm if state.contexts else 0.0
        limit_w = min(state.limit_w, spec.power_limit_w)
        return GpuSample(state.freq_mhz, power_w, power_w, None, busy, limit_w, self._events(state))

    def lock_freq(self, max_mhz: int) -> None:
        """Raises ValueError outside the supported range: a typo must not slow a GPU to its lowest clock."""
        low, high = self._node.spec.freqs_mhz[0], self._node.spec.max_freq_mhz
        if not low <= max_mhz <= high:
            raise ValueError(f"{self.uuid}: {max_mhz} MHz is outside {low}..{high} MHz")
        self._node.lock_freq(self._index, max_mhz)

    def reset_freq(self) -> None:
        self._node.lock_freq(self._index, self._node.spec.max_freq_mhz)

    def freq_mhz(self) -> int:
        return self._state().freq_mhz

    def locked_mhz(self) -> int | None:
        return self._state().target_mhz

    def power_w(self) -> float:
        return self._state().power_w(self._node.spec)

    def energy_j(self) -> float:
        return self._state().energy_j

    def energy_age_s(self) -> float:
        return 0.0

    def power_limits_w(self) -> tuple[float, float, float]:
        limit_w = self._node.spec.power_limit_w
        return self._node.spec.context_w, limit_w, limit_w

    def power_limit_w(self) -> float:
        return min(self._state().limit_w, self._node.spec.power_limit_w)

    def set_power_limit(self, power_w: float) -> None:
        """Power is cut off at the limit; the time that work takes does not grow with it yet."""
        low_w, _, high_w = self.power_limits_w()
        if not low_w <= power_w <= high_w:
            raise ValueError(f"{self.uuid}: {power_w} W is outside {low_w}..{high_w} W")
        self._node.set_power_limit(self._index, power_w)

    def reset_power_limit(self) -> None:
        self._node.set_power_limit(self._index, self._node.spec.power_limit_w)

    def clock_events(self) -> frozenset[ClockEvent]:
        return self._events(self._state())

    def _events(self, state: GpuState) -> frozenset[ClockEvent]:
        spec = self._node.spec
        events = set()
        if state.contexts == 0 or state.activity == IDLE:
            events.add(ClockEvent.IDLE)
        elif state.power_w(spec) >= min(state.limit_w, spec.power_limit_w):
            events.add(ClockEvent.POWER_CAP)
        if state.target_mhz < spec.max_freq_mhz:
            events.add(ClockEvent.APPLICATION)
        return frozenset(events)

    def _state(self) -> GpuState:
        return self._node.state(self._index)
