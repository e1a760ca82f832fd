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

from control_plane.hardware.gpu_model import H100_SXM, Activity, GpuSpec, GpuState

_MAGIC = b"wattray1"
_HEADER = struct.Struct("<8sqq")
_GPU = struct.Struct("<qqqqqqdddq")
"""at_ns, freq, target, settles_at_ns, contexts, context's pid, sm, mem, energy_j, locks."""


class SimulatedNode:
    """The GPUs of one simulated node. ``create`` makes the file, ``open`` maps it from any process."""

    def __init__(self, path: Path, spec: GpuSpec, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.path, self.spec, self._clock_ns = path, spec, clock_ns
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
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_bytes(_HEADER.pack(_MAGIC, count, now_ns) + body)
            draft.replace(path)
        return cls(path, spec, clock_ns)

    def close(self) -> None:
        self._map.close()
        self._file.close()

    def gpu(self, index: int) -> "SimulatedGpu":
        if not 0 <= index < self.count:
            raise IndexError(f"the node has GPUs 0..{self.count - 1}, not {index}")
        return SimulatedGpu(self, index)

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

    def reap_dead_contexts(self) -> int:
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
        at_ns, freq_mhz, target_mhz, settles_at_ns, contexts, pid, sm, mem, energy_j, locks = values
        activity = Activity(sm, mem)
        return GpuState(at_ns, freq_mhz, target_mhz, settles_at_ns, contexts, activity, energy_j, locks), pid

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
    )


class SimulatedGpu:
    """One GPU of a simulated node, behind the same protocol as NVML."""

    def __init__(self, node: SimulatedNode, index: int) -> None:
        self._node, self._index = node, index

    @property
    def uuid(self) -> str:
        return simulated_uuid(self._index)

    def supported_freqs_mhz(self) -> Sequence[int]:
        return self._node.spec.freqs_mhz

    def lock_freq(self, freq_mhz: int) -> None:
        """Raises ValueError outside the supported range: a typo must not slow a GPU to its lowest clock."""
        low, high = self._node.spec.freqs_mhz[0], self._node.spec.max_freq_mhz
        if not low <= freq_mhz <= high:
            raise ValueError(f"{self.uuid}: {freq_mhz} MHz is outside {low}..{high} MHz")
        self._node.lock_freq(self._index, freq_mhz)

    def reset_freq(self) -> None:
        self._node.lock_freq(self._index, self._node.spec.max_freq_mhz)

    def freq_mhz(self) -> int:
        return self._node.state(self._index).freq_mhz

    def power_w(self) -> float:
        return self._node.state(self._index).power_w(self._node.spec)

    def energy_j(self) -> float:
        return self._node.state(self._index).energy_j


def simulated_uuid(index: int) -> str:
    return f"GPU-sim-{index:04d}"


def simulated_index(uuid: str) -> int:
    """Raises ValueError for the UUID of no simulated GPU."""
    prefix, _, number = uuid.rpartition("-")
    if prefix != "GPU-sim" or not number.isdigit():
        raise ValueError(f"{uuid!r} is not the UUID of a simulated GPU")
    return int(number)
