import asyncio
from pathlib import Path

import pytest

from actors.gpu.simulated import SimulatedNode
from actors.gpu_agent import GpuAgent
from control_plane.hardware.gpu_model import H100_SXM


class World:
    """A node, an agent and the time of both, in seconds."""

    def __init__(self, path: Path, control: str = "act") -> None:
        self.now_s = 0.0
        self.node = SimulatedNode.create(path, 4, H100_SXM, lambda: round(self.now_s * 1e9))
        self.control = control
        self.agent = self.new_agent()

    def new_agent(self) -> GpuAgent:
        return GpuAgent("n0", lambda: [self.node.gpu(i) for i in range(4)], self.control, lambda: self.now_s)

    def after(self, seconds: float) -> list[int]:
        self.now_s += seconds
        return [self.node.gpu(index).freq_mhz() for index in range(4)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "gpus.bin")


A, B = "GPU-sim-0000", "GPU-sim-0001"


def test_a_held_clock_is_set_and_released(world: World) -> None:
    assert world.agent.hold("pool", {A: 1200}, 15) == {A: 1200}
    assert world.after(1) == [1200, 1980, 1980, 1980]
    world.agent.release("pool")
    assert world.after(1) == [1980] * 4


def test_a_lease_that_nobody_renews_lapses_to_full_clock(world: World) -> None:
    world.agent.hold("pool", {A: 1200}, 15)
    world.after(14)
    asyncio.run(world.agent.tick())
    assert world.after(0.5)[0] == 1200
    world.after(1)
    asyncio.run(world.agent.tick())
    assert world.after(1)[0] == 1980


def test_renewing_keeps_the_clock_and_tells_the_driver_once(world: World) -> None:
    before = world.node.state(0).locks
    for _ in range(100):
        world.agent.hold("pool", {A: 1200}, 15)
        world.now_s += 10
        asyncio.run(world.agent.tick())
    assert world.node.state(0).locks - before == 1
    assert world.after(1)[0] == 1200


def test_what_an_owner_no_longer_names_goes_back_to_full(world: World) -> None:
    world.agent.hold("pool", {A: 1200, B: 990}, 15)
    world.agent.hold("pool", {B: 990}, 15)
    assert world.after(1) == [1980, 990, 1980, 1980]


def test_one_gpu_has_one_owner(world: World) -> None:
    world.agent.hold("pool", {A: 1200}, 15)
    with pytest.raises(ValueError, match="leased to pool, not to job"):
        world.agent.hold("job", {A: 990}, 15)
    assert world.after(1)[0] == 1200


def test_a_gpu_of_another_node_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="no GPU GPU-other"):
        world.agent.hold("pool", {"GPU-other": 1200}, 15)


def test_an_agent_that_starts_resets_what_a_dead_one_left_locked(world: World) -> None:
    world.agent.hold("pool", {A: 1200}, 15)
    assert world.after(1)[0] == 1200
    world.agent = world.new_agent()
    assert world.after(1)[0] == 1980


def test_recommending_sets_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "gpus.bin", "recommend")
    assert world.agent.hold("pool", {A: 1200}, 15) == {A: 1980}
    assert world.after(1) == [1980] * 4
    assert world.agent.leases() == {A: ("pool", 1200)}


def test_readings_name_the_owner_and_sum_to_the_energy(world: World) -> None:
    world.agent.hold("pool", {A: 1200}, 15)
    world.after(10)
    readings = world.agent.readings()
    assert [r.owner for r in readings] == ["pool", None, None, None]
    assert sum(r.energy_j for r in readings) == pytest.approx(world.agent.energy_j()) == pytest.approx(3360)


def test_a_schedule_lease_leaves_the_clock_to_its_owner_until_it_lapses(world: World) -> None:
    assert world.agent.hold_schedule("job", [A, B], 15)
    world.node.lock_freq(0, 990)
    assert world.after(10) == [990, 1980, 1980, 1980]
    asyncio.run(world.agent.tick())
    assert world.after(1)[0] == 990
    assert world.agent.leases() == {A: ("job", 990), B: ("job", 1980)}
    world.after(5)
    asyncio.run(world.agent.tick())
    assert world.after(1) == [1980] * 4
    assert world.agent.leases() == {}


def test_a_schedule_lease_and_a_held_clock_exclude_each_other(world: World) -> None:
    world.agent.hold_schedule("job", [A], 15)
    with pytest.raises(ValueError, match="leased to job, not to pool"):
        world.agent.hold("pool", {A: 1200}, 15)
    world.agent.hold("pool", {B: 1200}, 15)
    with pytest.raises(ValueError, match="leased to pool, not to job"):
        world.agent.hold_schedule("job", [A, B], 15)
    with pytest.raises(ValueError, match="no GPU GPU-other"):
        world.agent.hold_schedule("job", ["GPU-other"], 15)


def test_a_released_schedule_is_full_clock_at_once(world: World) -> None:
    world.agent.hold_schedule("job", [A], 15)
    world.node.lock_freq(0, 990)
    world.agent.release("job")
    assert world.after(1)[0] == 1980


def test_where_clocks_are_only_recommended_a_schedule_may_not_set_them(tmp_path: Path) -> None:
    assert not World(tmp_path / "gpus.bin", "recommend").agent.hold_schedule("job", [A], 15)
