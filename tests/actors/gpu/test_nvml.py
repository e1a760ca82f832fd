"""The NVML driver through the real nvidia-ml-py and a driver library of our own, error by error."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
from fake_nvml import CLOCKS_MHZ, FakeNvml
from tests_support import ROOT

from actors.gpu.nvml import NvmlGpu, NvmlNode
from control_plane.ports import (
    ClockEvent,
    Feature,
    Gpu,
    GpuBusyError,
    GpuError,
    GpuLostError,
    GpuNotSupportedError,
    GpuPermissionError,
    NoGpuError,
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    library = FakeNvml(tmp_path, gpus=2)
    library.use_here(monkeypatch)
    for gpu in library.gpus:
        gpu.settle_ns = 0
    return library


@pytest.fixture
def gpu(fake: FakeNvml) -> Gpu:
    return NvmlNode().gpus()[0]


def test_a_gpu_tells_what_it_is(gpu: Gpu, fake: FakeNvml) -> None:
    assert (gpu.uuid, gpu.name) == (fake.gpu(0).uuid, "NVIDIA H100 80GB HBM3")
    assert tuple(gpu.supported_freqs_mhz()) == CLOCKS_MHZ
    assert gpu.power_limits_w() == (200.0, 700.0, 700.0)
    assert gpu.features() == frozenset(Feature)


def test_a_sample_is_everything_quick_at_once(gpu: Gpu, fake: FakeNvml) -> None:
    fake.gpu(0).cap_mhz = 1500
    sample = gpu.sample()
    assert (sample.freq_mhz, sample.temperature_c, sample.utilisation_ratio) == (1500, 45.0, 0.97)
    assert sample.power_w == pytest.approx(120 + 400 * 1500 / 1980, abs=1)
    assert (sample.power_limit_w, sample.events) == (700.0, {ClockEvent.POWER_CAP})


def test_a_lock_is_a_cap_from_the_lowest_supported_clock_rounded_down(gpu: Gpu, fake: FakeNvml) -> None:
    gpu.lock_freq(1203)
    assert fake.gpu(0).history()[0][:3] == (1, 345, 1200)
    assert gpu.freq_mhz() == 1200
    gpu.reset_freq()
    assert gpu.freq_mhz() == 1980
    assert gpu.locked_mhz() is None


@pytest.mark.parametrize("mhz", [344, 1981, 0, -5])
def test_a_clock_outside_the_supported_range_never_reaches_the_driver(gpu: Gpu, fake: FakeNvml, mhz: int) -> None:
    with pytest.raises(ValueError, match=r"345\.\.1980"):
        gpu.lock_freq(mhz)
    assert fake.gpu(0).lock_calls == 0


@pytest.mark.parametrize("watts", [199.0, 701.0, float("nan"), float("inf")])
def test_a_limit_outside_the_range_never_reaches_the_driver(gpu: Gpu, fake: FakeNvml, watts: float) -> None:
    with pytest.raises(ValueError, match=r"200\.\.700"):
        gpu.set_power_limit(watts)
    assert fake.gpu(0).limit_calls == 0


ERRORS: list[tuple[int, type[GpuError]]] = [
    (pynvml.NVML_ERROR_NO_PERMISSION, GpuPermissionError),
    (pynvml.NVML_ERROR_NOT_SUPPORTED, GpuNotSupportedError),
    (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, GpuNotSupportedError),
    (pynvml.NVML_ERROR_GPU_IS_LOST, GpuLostError),
    (pynvml.NVML_ERROR_RESET_REQUIRED, GpuLostError),
    (pynvml.NVML_ERROR_UNKNOWN, GpuBusyError),
    (pynvml.NVML_ERROR_TIMEOUT, GpuBusyError),
    (pynvml.NVML_ERROR_UNINITIALIZED, NoGpuError),
    (pynvml.NVML_ERROR_CORRUPTED_INFOROM, GpuError),
]


@pytest.mark.parametrize(("code", "kind"), ERRORS)
def test_every_error_of_a_set_is_one_kind_that_names_the_gpu(
    gpu: Gpu, fake: FakeNvml, code: int, kind: type[GpuError]
) -> None:
    fake.gpu(0).fails("lock", code)
    with pytest.raises(kind, match=rf"GPU {gpu.uuid}, locking at 1200 MHz.*code {code}"):
        gpu.lock_freq(1200)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_TIMEOUT])
def test_a_passing_fault_is_asked_again_and_a_lasting_one_is_given_up(gpu: Gpu, fake: FakeNvml, code: int) -> None:
    fake.gpu(0).fails("lock", code, times=2)
    gpu.lock_freq(1200)
    assert fake.gpu(0).lock_calls == 3
    fake.gpu(0).fails("lock", code)
    with pytest.raises(GpuBusyError):
        gpu.lock_freq(990)
    assert fake.gpu(0).lock_calls == 6


def test_one_lost_gpu_leaves_the_other_readable(fake: FakeNvml) -> None:
    lost, well = NvmlNode().gpus()
    fake.gpu(0).lost = 1
    with pytest.raises(GpuLostError):
        lost.sample()
    assert well.sample().freq_mhz == 1980


def test_a_lost_gpu_is_left_out_when_the_node_is_looked_at_and_is_back_when_it_answers(fake: FakeNvml) -> None:
    node = NvmlNode()
    first, second = node.gpus()
    fake.gpu(0).lost = 1
    assert [gpu.uuid for gpu in node.gpus()] == [second.uuid]
    fake.gpu(0).lost = 0
    assert node.gpus() == [first, second]


def test_gpus_that_come_and_go_are_known_by_uuid(fake: FakeNvml) -> None:
    node = NvmlNode()
    first, second = node.gpus()
    fake.gpu(0).uuid_bytes, fake.gpu(1).uuid_bytes = fake.gpu(1).uuid_bytes, fake.gpu(0).uuid_bytes
    assert node.gpus() == [second, first]
    fake.gpu(0).boost_mhz = 1755
    assert (second.freq_mhz(), first.freq_mhz()) == (1755, 1980)
    fake.state.count = 1
    assert node.gpus() == [second]
    assert node.uuid_of(0) == second.uuid


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH])
def test_a_driver_that_is_not_there_is_no_gpu_until_it_is(fake: FakeNvml, code: int) -> None:
    fake.state.init_error = code
    with pytest.raises(NoGpuError, match=f"code {code}"):
        NvmlNode()
    fake.state.init_error = 0
    assert len(NvmlNode().gpus()) == 2


def test_without_any_library_there_is_no_gpu(tmp_path: Path) -> None:
    code = "from actors.gpu.nvml import NvmlNode\ntry: NvmlNode()\nexcept Exception as e: print(type(e).__name__, e)"
    environ = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert shown.stdout.startswith("NoGpuError NVML: NVML says NVML Shared Library Not Found"), shown


READS: list[tuple[str, Feature, str]] = [
    ("temperature", Feature.TEMPERATURE, "temperature_c"),
    ("utilisation", Feature.UTILISATION, "utilisation_ratio"),
    ("limit", Feature.POWER_LIMIT, "power_limit_w"),
    ("reasons", Feature.EVENTS, "events"),
]


@pytest.mark.parametrize(("function", "feature", "field"), READS)
def test_what_is_not_supported_is_none_and_flagged_and_the_rest_is_told(
    gpu: Gpu, fake: FakeNvml, function: str, feature: Feature, field: str
) -> None:
    fake.gpu(0).fails(function, pynvml.NVML_ERROR_NOT_SUPPORTED)
    sample = gpu.sample()
    assert getattr(sample, field) is None
    assert sample.freq_mhz == 1980
    assert feature not in gpu.features()


def test_without_clocks_a_gpu_says_so_and_its_power_limit_is_the_actuator(gpu: Gpu, fake: FakeNvml) -> None:
    fake.gpu(0).fails("clocks", pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert gpu.supported_freqs_mhz() == ()
    assert Feature.CLOCK_LOCK not in gpu.features()
    with pytest.raises(GpuNotSupportedError, match="limit its power instead"):
        gpu.lock_freq(1200)
    gpu.set_power_limit(450.0)
    assert fake.gpu(0).limit_mw == 450_000
    gpu.reset_power_limit()
    assert fake.gpu(0).limit_mw == 700_000


def test_instant_power_falls_back_to_the_average(gpu: Gpu, fake: FakeNvml) -> None:
    fake.gpu(0).fails("fields", pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert gpu.power_w() == pytest.approx(520.0)
    assert Feature.INSTANT_POWER not in gpu.features()


def test_an_old_driver_lacks_calls_and_is_read_all_the_same(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1, old_driver=True)
    fake.gpu(0).cap_mhz = 1500
    code = (
        "from actors.gpu.nvml import NvmlNode\n"
        "gpu = NvmlNode().gpus()[0]\n"
        "s = gpu.sample()\n"
        "print(s.freq_mhz, round(s.power_w), s.temperature_c, sorted(s.events), len(gpu.supported_freqs_mhz()))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(fake.environ), capture_output=True, text=True
    )
    assert shown.stdout == "1500 423 45.0 [<ClockEvent.POWER_CAP: 'power_cap'>] 110\n", shown.stderr


def test_the_energy_counter_is_asked_ten_times_a_second_at_most(fake: FakeNvml) -> None:
    now_s = 100.0
    gpu = NvmlNode(monotonic_s=lambda: now_s).gpus()[0]
    read_j = [gpu.energy_j() for _ in range(50)]
    assert (fake.gpu(0).energy_calls, len(set(read_j))) == (1, 1)
    now_s = 100.05
    assert gpu.energy_j() == read_j[0]
    assert gpu.energy_age_s() == pytest.approx(0.05)
    now_s = 100.11
    gpu.energy_j()
    assert fake.gpu(0).energy_calls == 2


EVENTS = [
    (1, ClockEvent.IDLE),
    (2, ClockEvent.APPLICATION),
    (4, ClockEvent.POWER_CAP),
    (8, ClockEvent.HARDWARE_SLOWDOWN),
    (0x20, ClockEvent.THERMAL),
    (0x40, ClockEvent.THERMAL),
    (0x80, ClockEvent.POWER_BRAKE),
]


@pytest.mark.parametrize(("bit", "event"), EVENTS)
def test_every_reason_of_nvml_is_an_event(gpu: Gpu, fake: FakeNvml, bit: int, event: ClockEvent) -> None:
    fake.gpu(0).extra_reasons = bit
    assert gpu.clock_events() == {event}


def test_a_mig_gpu_is_not_ours_unless_opted_in(fake: FakeNvml) -> None:
    fake.gpu(0).mig = 1
    cut, whole = NvmlNode().gpus()
    assert "MIG" in (cut.why_not_ours() or "")
    assert whole.why_not_ours() is None
    assert NvmlNode(allow_shared=True).gpus()[0].why_not_ours() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process of another user")
def test_a_gpu_that_several_users_run_on_is_not_ours(fake: FakeNvml) -> None:
    with subprocess.Popen(["sleep", "60"], user=65534) as other:
        gpu = fake.gpu(1)
        gpu.processes, gpu.process_pid[0], gpu.process_pid[1] = 2, 1, other.pid
        assert "2 users" in (NvmlNode().gpus()[1].why_not_ours() or "")
        gpu.processes = 1
        assert NvmlNode().gpus()[1].why_not_ours() is None
        other.kill()


def test_a_gpu_without_mig_is_ours(fake: FakeNvml) -> None:
    fake.gpu(0).mig = -1
    assert NvmlNode().gpus()[0].why_not_ours() is None


FAILING_READS: list[Callable[[NvmlGpu], object]] = [
    lambda gpu: gpu.freq_mhz(),
    lambda gpu: gpu.power_w(),
    lambda gpu: gpu.energy_j(),
    lambda gpu: gpu.clock_events(),
    lambda gpu: gpu.power_limit_w(),
]


@pytest.mark.parametrize("read", FAILING_READS)
def test_every_read_of_a_lost_gpu_says_that_it_is_lost(
    gpu: NvmlGpu, fake: FakeNvml, read: Callable[[NvmlGpu], object]
) -> None:
    fake.gpu(0).lost = 1
    with pytest.raises(GpuLostError):
        read(gpu)
