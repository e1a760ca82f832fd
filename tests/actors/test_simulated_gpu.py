import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from actors.gpu.simulated import SimulatedNode
from control_plane.hardware.gpu_model import H100_SXM, Activity
from control_plane.ports import ClockEvent, GpuError

S = 10**9


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, clock: Clock) -> SimulatedNode:
    return SimulatedNode.create(tmp_path / "gpus.bin", 4, H100_SXM, clock)


def test_idle_gpus_count_energy(node: SimulatedNode, clock: Clock) -> None:
    clock.now_ns = 10 * S
    assert [node.gpu(index).energy_j() for index in range(4)] == [pytest.approx(840.0)] * 4


def test_a_lock_outlives_whoever_set_it(node: SimulatedNode, clock: Clock) -> None:
    node.gpu(1).lock_freq(1200)
    node.close()
    again = SimulatedNode(node.path, clock)
    clock.now_ns = S
    assert [again.gpu(index).freq_mhz() for index in range(4)] == [1980, 1200, 1980, 1980]
    again.gpu(1).reset_freq()
    clock.now_ns = 2 * S
    assert again.gpu(1).freq_mhz() == 1980


def test_creating_twice_keeps_what_is_there(node: SimulatedNode, clock: Clock) -> None:
    node.gpu(0).lock_freq(990)
    clock.now_ns = S
    assert SimulatedNode.create(node.path, 4, H100_SXM, clock).gpu(0).freq_mhz() == 990


@pytest.mark.parametrize("freq_mhz", [0, -5, 344, 1981, 10**6])
def test_a_clock_outside_the_supported_range_is_refused(node: SimulatedNode, freq_mhz: int) -> None:
    with pytest.raises(ValueError, match=r"outside 345\.\.1980"):
        node.gpu(0).lock_freq(freq_mhz)


def test_a_dead_process_holds_no_context(node: SimulatedNode, clock: Clock) -> None:
    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    child.join()
    assert child.pid is not None
    node.open_context(0, child.pid)
    node.open_context(1, os.getpid())
    node.set_activity([0, 1], Activity(1, 1))
    assert node.reap() == 1
    assert node.gpu(0).power_w() == 84.0
    assert node.gpu(1).power_w() > 500


def test_a_process_frees_only_what_it_holds(node: SimulatedNode) -> None:
    node.open_context(0, 111)
    node.open_context(0, 222)
    node.close_context(0, 111)
    assert node.gpu(0).power_w() == 127.0
    node.close_context(0, 222)
    assert node.gpu(0).power_w() == 84.0


def _hammer(path: Path) -> None:
    node = SimulatedNode(path)
    for _ in range(300):
        node.set_activity([0, 1, 2, 3], Activity(0.5, 0.5))
        node.lock_freq(0, 1200)


def test_two_processes_never_tear_a_record(tmp_path: Path) -> None:
    node = SimulatedNode.create(tmp_path / "gpus.bin", 4)
    before = [state.locks for state in node.states()]
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_hammer, args=(node.path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    states = node.states()
    assert states[0].locks - before[0] == 900
    assert all(state.freq_mhz in H100_SXM.freqs_mhz and state.energy_j >= 0 for state in states)


def test_uuids_go_both_ways_and_differ_from_node_to_node(tmp_path: Path) -> None:
    nodes = [SimulatedNode.create(tmp_path / f"gpus-{name}.bin", 32) for name in ("ab12cd34ef", "99ff00aa11")]
    for node in nodes:
        assert [node.index_of(node.uuid_of(index)) for index in (0, 7, 31)] == [0, 7, 31]
        with pytest.raises(GpuError, match="no GPU GPU-1234"):
            node.index_of("GPU-1234")
        with pytest.raises(GpuError, match=r"GPUs 0\.\.31, not 32"):
            node.uuid_of(32)
    assert len({gpu.uuid for node in nodes for gpu in node.gpus()}) == 64


def test_every_process_charges_the_gpu_model_that_the_node_was_made_with(tmp_path: Path) -> None:
    spec = replace(H100_SXM, name="other", idle_w=50.0, sm_shares=tuple(f / 1980 for f in H100_SXM.freqs_mhz))
    SimulatedNode.create(tmp_path / "gpus.bin", 1, spec).close()
    again = SimulatedNode(tmp_path / "gpus.bin")
    assert again.spec == spec
    assert again.gpu(0).power_w() == 50.0
    assert again.gpu(0).name == "other"


def test_a_power_limit_cuts_what_is_drawn_and_is_told_as_the_reason(node: SimulatedNode, clock: Clock) -> None:
    gpu = node.gpu(0)
    node.open_context(0, os.getpid())
    node.set_activity([0], Activity(1, 1))
    assert gpu.clock_events() == {ClockEvent.POWER_CAP}
    gpu.lock_freq(990)
    clock.now_ns = S
    assert gpu.clock_events() == {ClockEvent.APPLICATION}
    gpu.set_power_limit(300.0)
    assert (gpu.power_w(), gpu.power_limit_w()) == (300.0, 300.0)
    assert ClockEvent.POWER_CAP in gpu.clock_events()
    before_j = gpu.energy_j()
    clock.now_ns += 2 * S
    assert gpu.energy_j() - before_j == pytest.approx(600.0)
    gpu.reset_power_limit()
    assert gpu.power_limit_w() == 700.0
    with pytest.raises(ValueError, match="outside"):
        gpu.set_power_limit(900.0)


def test_a_file_that_is_no_node_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(b"x" * 100)
    path.with_suffix(".json").write_text(H100_SXM.to_json())
    with pytest.raises(ValueError, match="no simulated node"):
        SimulatedNode(path)
