"""The fake driver library for tests: builds tests/gpud/fake_nvml.c and steers the GPUs behind it, from any process.

nvidia-ml-py loads it as it loads a driver's library, so the real bindings and the real ctypes path are what is tested.
"""

import ctypes
import functools
import mmap
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "gpud" / "fake_nvml.c"
CLOCKS_MHZ = tuple(range(345, 1981, 15))
"""An H100's."""
FOREVER_US = 1_800_000_000

FUNCTIONS = (
    *("lock", "reset", "clock", "power", "fields", "energy", "temperature", "utilisation", "limit", "set_limit"),
    *("reasons", "clocks", "handle", "name", "persistence", "mig", "processes", "limits"),
)
"""In the order of the C file."""


class _Fault(ctypes.Structure):
    _fields_ = (("error", ctypes.c_int32), ("times", ctypes.c_int32), ("delay_us", ctypes.c_int64))


class _Set(ctypes.Structure):
    _fields_ = (("at_ns", ctypes.c_int64), *((name, ctypes.c_int32) for name in ("kind", "pid", "low", "high")))


def _ints(kind: type, names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names.split())


class FakeGpu(ctypes.Structure):
    """One GPU's state; every field may be read and written while a driver works on it."""

    _fields_ = (
        ("uuid_bytes", ctypes.c_char * 96),
        ("name_bytes", ctypes.c_char * 96),
        *_ints(ctypes.c_int32, "clocks persistence mig processes"),
        ("clock", ctypes.c_int32 * 128),
        *_ints(ctypes.c_int32, "boost_mhz idle idle_mhz cap_mhz stuck lost"),
        ("settle_ns", ctypes.c_int64),
        *_ints(ctypes.c_int32, "lock_low lock_high before_mhz pad0"),
        ("locked_at_ns", ctypes.c_int64),
        ("extra_reasons", ctypes.c_uint64),
        *_ints(ctypes.c_int32, "power_base_mw power_busy_mw limit_mw limit_low_mw limit_default_mw limit_high_mw"),
        *_ints(ctypes.c_int32, "energy_frozen temperature"),
        *_ints(ctypes.c_int64, "energy_base_mj energy_from_ns"),
        *_ints(ctypes.c_int64, "lock_calls reset_calls limit_calls energy_calls"),
        *_ints(ctypes.c_int32, "in_set overlaps sets"),
        ("process_pid", ctypes.c_int32 * 7),
        ("fault", _Fault * 24),
        ("ring", _Set * 512),
    )

    @property
    def uuid(self) -> str:
        return bytes(self.uuid_bytes).decode()

    def fails(self, function: str, error: int, times: int = 0) -> None:
        """The function answers this error: ``times`` times, or always."""
        fault = self.fault[FUNCTIONS.index(function)]
        fault.times, fault.error = times, error

    def delays(self, function: str, delay_us: int) -> None:
        self.fault[FUNCTIONS.index(function)].delay_us = delay_us

    def works(self) -> None:
        """Every fault is over."""
        for fault in self.fault:
            fault.error = fault.times = fault.delay_us = 0
        self.lost = self.stuck = self.energy_frozen = self.cap_mhz = 0

    def history(self) -> list[tuple[int, int, int, int]]:
        """(kind, lowest, highest, at_ns) of the sets so far, oldest first: kind 1 locks, 2 resets, 3 limits power."""
        first = max(0, self.sets - len(self.ring))
        made = [self.ring[place % len(self.ring)] for place in range(first, self.sets)]
        return [(entry.kind, entry.low, entry.high, entry.at_ns) for entry in made]


class _State(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_char * 8),
        *_ints(ctypes.c_int32, "init_error count epoch pad"),
        ("gpu", FakeGpu * 16),
    )


class FakeNvml:
    """A node's GPUs behind the library, H100-like, busy and at full clock. ``environ`` is what a process needs to find
    them."""

    def __init__(self, folder: Path, gpus: int = 2, old_driver: bool = False) -> None:
        self.library = built_library(old_driver)
        self.path = folder / "nvml-state.bin"
        self.path.write_bytes(bytes(ctypes.sizeof(_State)))
        with self.path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.state = _State.from_buffer(self._map)
        self.state.count = gpus
        for index in range(gpus):
            _fill(self.state.gpu[index], index)

    @property
    def gpus(self) -> list[FakeGpu]:
        return list(self.state.gpu[: self.state.count])

    def gpu(self, index: int) -> FakeGpu:
        return self.state.gpu[index]

    @property
    def environ(self) -> Mapping[str, str]:
        return {"LD_LIBRARY_PATH": str(self.library.parent), "FAKE_NVML_STATE": str(self.path)}

    def use_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """This process's nvidia-ml-py finds the library too: the loader takes a loaded one by its name."""
        monkeypatch.setenv("FAKE_NVML_STATE", str(self.path))
        ctypes.CDLL(str(self.library), mode=ctypes.RTLD_GLOBAL)


def _fill(gpu: FakeGpu, index: int) -> None:
    gpu.uuid_bytes = f"GPU-fa4e0000-0000-4000-8000-{index:012d}".encode()
    gpu.name_bytes = b"NVIDIA H100 80GB HBM3"
    gpu.clocks = len(CLOCKS_MHZ)
    for place, mhz in enumerate(CLOCKS_MHZ):
        gpu.clock[place] = mhz
    gpu.persistence, gpu.mig = 1, 0
    gpu.boost_mhz, gpu.idle_mhz, gpu.settle_ns = 1980, 345, 20_000_000
    gpu.power_base_mw, gpu.power_busy_mw = 120_000, 400_000
    gpu.limit_mw = gpu.limit_default_mw = gpu.limit_high_mw = 700_000
    gpu.limit_low_mw, gpu.temperature = 200_000, 45


@functools.cache
def built_library(old_driver: bool = False) -> Path:
    """The library, built once a session. Skips the test where no C compiler is."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the fake driver library is built with cc, gcc or clang")
    folder = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    library = folder / "libnvidia-ml.so.1"
    flags = ["-DOLD_DRIVER"] if old_driver else []
    command = [compiler, "-O1", "-shared", "-fPIC", "-Wall", "-Werror", *flags]
    command += ["-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, timeout=60)
    return library
