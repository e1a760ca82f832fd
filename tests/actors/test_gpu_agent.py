import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from actors.gpu.simulated import SimulatedNode
from actors.gpu_agent import GpuAgent
from actors.messages import Held
from control_plane.hardware.gpu_model import H100_SXM
from control_plane.leases import Hold, StaleEpochError
from control_plane.ports import Gpu, GpuLostError


class Breakable:
    """A GPU that stops answering when the world says so."""

    def __init__(self, world: "World", gpu: Gpu) -> None:
        self._world, self._gpu = world, gpu

    def __getattr__(self, name: str) -> Any:
        if name != "uuid" and self._gpu.uuid in self._world.broken:
            raise GpuLostError(f"GPU {self._gpu.uuid} has fallen off the bus")
        return getattr(self._gpu, name)


class World:
    """A node, an agent and the time of both, in seconds."""

    def __init__(self, path: Path, control: Literal["act", "recommend"] = "act") -> None:
        self.broken: set[str] = set()
        self.now_s = 0.0
        self.node = SimulatedNode.create(path, 4, H100_SXM, lambda: round(self.now_s * 1e9))
        self.control = control
        self.agent = self.new_agent()

    def new_agent(self) -> GpuAgent:
        node, world = self.node, self

        class Node:
            reap, close, uuid_of = node.reap, node.close, node.uuid_of

            def gpus(self) -> Sequence[Gpu]:
                return [Breakable(world, gpu) for gpu in node.gpus()]

        return GpuAgent("n0", Node, self.control, lambda: self.now_s)

    def after(self, seconds: float) -> list[int]:
        self.now_s += seconds
        return [self.node.gpu(index).freq_mhz() for index in range(4)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "gpus.bin")


A, B = "GPU-sim-0000", "GPU-sim-0001"


def test_a_held_clock_is_set_and_released(world: World) -> None:
    assert world.agent.hold("pool", {A: Hold(1200)}, 15) == Held({A: 1200}, {})
    assert world.after(1) == [1200, 1980, 1980, 1980]
    world.agent.release("pool")
    assert world.after(1) == [1980] * 4


def test_a_lease_that_nobody_renews_lapses_to_full_clock(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200)}, 15)
    world.after(14)
    asyncio.run(world.agent.tick())
    assert world.after(0.5)[0] == 1200
    world.after(1)
    asyncio.run(world.agent.tick())
    assert world.after(1)[0] == 1980


def test_renewing_keeps_the_clock_and_tells_the_driver_once(world: World) -> None:
    before = world.node.state(0).locks
    for _ in range(100):
        world.agent.hold("pool", {A: Hold(1200)}, 15)
        world.now_s += 10
        asyncio.run(world.agent.tick())
    assert world.node.state(0).locks - before == 1
    assert world.after(1)[0] == 1200


def test_what_an_owner_no_longer_names_goes_back_to_full(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200), B: Hold(990)}, 15)
    world.agent.hold("pool", {B: Hold(990)}, 15)
    assert world.after(1) == [1980, 990, 1980, 1980]


def test_one_gpu_has_one_owner(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200)}, 15)
    assert world.agent.hold("job", {A: Hold(990), B: Hold(990)}, 15) == Held({B: 990}, {A: "leased to pool"})
    assert world.after(1) == [1200, 990, 1980, 1980]


def test_a_gpu_of_another_node_is_refused_and_the_others_are_held(world: World) -> None:
    held = world.agent.hold("pool", {"GPU-other": Hold(1200), A: Hold(1200)}, 15)
    assert held == Held({A: 1200}, {"GPU-other": "this node has no such GPU"})
    assert world.after(1)[0] == 1200


def test_the_answer_is_what_the_hardware_says_not_what_was_asked(world: World) -> None:
    assert world.agent.hold("pool", {A: Hold(1203)}, 15).in_force_mhz == {A: 1200}


def test_a_clock_out_of_range_is_refused_and_leaves_no_half_set_gpu(world: World) -> None:
    held = world.agent.hold("pool", {A: Hold(5), B: Hold(1200)}, 15)
    assert held.in_force_mhz == {B: 1200}
    assert "outside 345..1980" in held.refused[A]
    assert world.after(1) == [1980, 1200, 1980, 1980]


def test_somebody_elses_lock_is_found_and_set_again(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200)}, 15)
    world.node.gpu(0).lock_freq(795)
    world.node.gpu(1).lock_freq(795)
    assert world.after(1)[:2] == [795, 795]
    asyncio.run(world.agent.tick())
    assert world.after(1)[:2] == [1200, 1980]


def test_a_reset_that_fails_is_tried_again_until_it_succeeds(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200), B: Hold(1200)}, 15)
    world.broken = {A}
    world.agent.release("pool")
    assert world.after(1)[:2] == [1200, 1980]
    asyncio.run(world.agent.tick())
    assert world.after(1)[0] == 1200
    world.broken = set()
    asyncio.run(world.agent.tick())
    assert world.after(1)[0] == 1980


def test_one_lost_gpu_leaves_the_others_controlled_and_read(world: World) -> None:
    world.broken = {A}
    held = world.agent.hold("pool", {A: Hold(1200), B: Hold(1200)}, 15)
    assert held.in_force_mhz == {B: 1200}
    assert held.refused == {A: f"GPU {A} has fallen off the bus"}
    assert [reading.uuid for reading in world.agent.readings()] == [world.node.uuid_of(i) for i in (1, 2, 3)]


def test_power_limits_are_held_and_released_with_the_clock(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200, 300.0)}, 15)
    assert world.node.gpu(0).power_limit_w() == 300.0
    world.agent.hold("pool", {A: Hold(1200)}, 15)
    assert world.node.gpu(0).power_limit_w() == 700.0


def test_an_owner_that_was_replaced_is_refused(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200)}, 15, epoch=2)
    with pytest.raises(StaleEpochError, match="epoch 2 has replaced it"):
        world.agent.hold("pool", {A: Hold(990)}, 15, epoch=1)
    assert world.after(1)[0] == 1200


def test_ranks_release_only_their_own_gpu(world: World) -> None:
    world.agent.hold_schedule("job", [A], 15)
    world.agent.hold_schedule("job", [B], 15)
    world.node.lock_freq(0, 990)
    world.node.lock_freq(1, 990)
    world.agent.release("job", [A])
    assert world.after(1)[:2] == [1980, 990]
    assert set(world.agent.leases()) == {B}


def test_an_agent_that_starts_resets_what_a_dead_one_left_locked(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200)}, 15)
    assert world.after(1)[0] == 1200
    world.agent = world.new_agent()
    assert world.after(1)[0] == 1980


def test_recommending_sets_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "gpus.bin", "recommend")
    assert world.agent.hold("pool", {A: Hold(1200)}, 15) == Held({A: 1980}, {})
    assert world.after(1) == [1980] * 4
    assert world.agent.leases() == {}


def test_where_clocks_are_only_recommended_what_others_have_locked_stays_and_is_shown(tmp_path: Path) -> None:
    SimulatedNode.create(tmp_path / "gpus.bin", 4).gpu(0).lock_freq(1200)
    world = World(tmp_path / "gpus.bin", "recommend")
    asyncio.run(world.agent.tick())
    assert [reading.locked_mhz for reading in world.agent.readings()] == [1200, 1980, 1980, 1980]


def test_readings_name_the_owner_and_sum_to_the_energy(world: World) -> None:
    world.agent.hold("pool", {A: Hold(1200)}, 15)
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
    assert world.agent.hold("pool", {A: Hold(1200)}, 15).refused == {A: "leased to job"}
    world.agent.hold("pool", {B: Hold(1200)}, 15)
    with pytest.raises(ValueError, match="leased to pool"):
        world.agent.hold_schedule("job", [A, B], 15)
    with pytest.raises(ValueError, match="no such GPU"):
        world.agent.hold_schedule("job", ["GPU-other"], 15)
    assert world.agent.leases() == {A: ("job", 1980), B: ("pool", 1200)}


def test_a_released_schedule_is_full_clock_at_once(world: World) -> None:
    world.agent.hold_schedule("job", [A], 15)
    world.node.lock_freq(0, 990)
    world.agent.release("job")
    assert world.after(1)[0] == 1980


def test_where_clocks_are_only_recommended_a_schedule_may_not_set_them(tmp_path: Path) -> None:
    agent = World(tmp_path / "gpus.bin", "recommend").agent
    assert not agent.hold_schedule("job", [A], 15)
    with pytest.raises(ValueError, match="leased to job"):
        agent.hold_schedule("other", [A], 15)
