"""The agent as a client of a real gpud on the fake driver library: what owners hear, and what happens without gpud."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from fake_nvml import FakeNvml
from gpud_process import GpudProcess, eventually

from actors import guarded_agent
from actors.gpu.drivers import NodeSite, open_charged, open_guarded
from actors.gpu.gpud_client import GpudClient
from actors.gpu.guarded_node import GuardedNode
from actors.gpu.headroom import LostHeadroom
from actors.gpu.restore import restore_defaults
from actors.gpu.scheduled_gpus import ScheduledGpus
from actors.guarded_agent import GuardedGpuAgent
from actors.messages import GpuReading, Held
from actors.peers import PeerAwayError
from control_plane.hardware.gpu_model import H100_SXM
from control_plane.leases import Hold, StaleEpochError

Told = tuple[tuple[LostHeadroom, ...], tuple[LostHeadroom, ...]]


class World:
    """A gpud on three GPUs, and agents of it in a time of their own."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeNvml(folder, gpus=3)
        self.gpud = GpudProcess(folder, self.fake.environ, ("--ttl-max", "60")).start()
        self.a, self.b, self.c = (gpu.uuid for gpu in self.fake.gpus)
        self.now_s = 0.0
        self.told: list[Told] = []

    def agent(self, control: Literal["act", "recommend"] = "act") -> GuardedGpuAgent:
        async def tell(lost: tuple[LostHeadroom, ...], back: tuple[LostHeadroom, ...]) -> None:
            self.told.append((lost, back))

        client = GpudClient(self.gpud.socket, timeout_s=1.0)
        agent = GuardedGpuAgent("n0", client, None, control, tell, lambda: self.now_s)
        asyncio.run(agent.tick())
        return agent

    def locked(self) -> list[int]:
        return [gpu.lock_high for gpu in self.fake.gpus]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("agent"))
    yield world
    world.gpud.end()


@pytest.fixture
def world(shared: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(guarded_agent.metrics, "gpu", lambda reading, spent_j: None)
    for gpu in shared.fake.gpus:
        gpu.works()
        gpu.extra_reasons = 0
    eventually(lambda: all(row["state"] == "ok" for row in shared.gpud.rows().values()))
    shared.gpud.client.reset(None)
    eventually(lambda: not any(row["owes_a_reset"] for row in shared.gpud.rows().values()))
    time.sleep(0.025)  # the clocks settle
    shared.told.clear()
    return shared


def test_a_wish_is_held_and_what_is_no_longer_named_is_let_go(world: World) -> None:
    agent = world.agent()
    held = asyncio.run(agent.hold("pool", {world.a: Hold(1203), world.b: Hold(990)}, 15))
    assert held == Held({world.a: 1200, world.b: 990}, {})
    assert asyncio.run(agent.leases()) == {world.a: ("pool", 1200), world.b: ("pool", 990)}
    world.now_s += 1
    asyncio.run(agent.hold("pool", {world.b: Hold(990)}, 15))
    eventually(lambda: world.locked() == [0, 990, 0])
    asyncio.run(agent.release("pool"))
    eventually(lambda: world.locked() == [0, 0, 0])


def test_what_is_refused_is_told_and_a_stuck_clock_is_no_success(world: World) -> None:
    agent = world.agent()
    world.fake.gpu(0).stuck = 1
    held = asyncio.run(agent.hold("pool", {world.a: Hold(1200), world.b: Hold(1200), "GPU-x": Hold(990)}, 15))
    assert held.in_force_mhz == {world.b: 1200}
    assert held.refused[world.a] == "stuck: it runs at 1980 MHz above 1200 MHz"
    assert held.refused["GPU-x"] == "this node has no GPU GPU-x"
    assert "leased to pool" in asyncio.run(agent.hold("job", {world.b: Hold(990)}, 15)).refused[world.b]


def test_a_replaced_owner_and_a_senseless_lease_are_refused(world: World) -> None:
    agent = world.agent()
    asyncio.run(agent.hold("manager", {world.a: Hold(1200)}, 15, epoch=8))
    with pytest.raises(StaleEpochError):
        asyncio.run(agent.hold("manager", {world.a: Hold(990)}, 15, epoch=7))
    with pytest.raises(ValueError, match="ttl_s"):
        asyncio.run(agent.hold("pool", {world.b: Hold(990)}, 1e6))


def test_a_schedule_lease_is_the_owners_to_drive(world: World) -> None:
    agent = world.agent()
    assert asyncio.run(agent.hold_schedule("training:job", [world.a], 15))
    world.gpud.client.set("training:job", {world.a: 990})
    assert asyncio.run(agent.leases())[world.a] == ("training:job", 990)
    with pytest.raises(ValueError, match="leased to training:job"):
        asyncio.run(agent.hold_schedule("training:other", [world.a, world.b], 15))


def test_where_clocks_are_only_recommended_gpud_is_only_asked_to_read(world: World) -> None:
    agent = world.agent("recommend")
    audited = len(world.gpud.audit())
    assert asyncio.run(agent.hold("pool", {world.a: Hold(1200)}, 15)) == Held({world.a: 1980}, {})
    assert not asyncio.run(agent.hold_schedule("job", [world.a], 15))
    asyncio.run(agent.reset_all())
    assert len(world.gpud.audit()) == audited
    assert [reading.freq_mhz for reading in agent.readings()] == [1980] * 3


def test_readings_leave_a_lost_gpu_out_and_say_what_holds_another_down(world: World) -> None:
    agent = world.agent()
    world.fake.gpu(0).lost = 1
    world.fake.gpu(1).cap_mhz = 1200
    world.now_s += 1
    agent.tick_s = 0.1
    for _ in range(3):
        time.sleep(0.1)
        asyncio.run(agent.tick())
    readings: dict[str, GpuReading] = {reading.uuid: reading for reading in agent.readings()}
    assert readings.keys() == {world.b, world.c}
    assert (readings[world.b].freq_mhz, readings[world.b].events) == (1200, ("power_cap",))
    [(lost, back)] = world.told
    assert ([(loss.uuid, loss.runs_mhz) for loss in lost], back) == ([(world.b, 1200)], ())


def test_a_governor_drives_its_gpus_under_a_schedule_lease(world: World) -> None:
    governor = ScheduledGpus(GpudClient(world.gpud.socket), "governor:r0")
    asyncio.run(governor.hold({world.a: 1200, world.b: 1200}, 15))
    asyncio.run(governor.hold({world.a: 990, world.b: 990}, 15))
    assert world.locked()[:2] == [990, 990]
    world.gpud.client.lock("pool", {world.c: Hold(1200)}, 15)
    with pytest.raises(PeerAwayError, match="leased to pool"):
        asyncio.run(governor.hold({world.c: 990}, 15))


def test_without_gpud_nothing_is_held_nothing_is_read_and_it_is_said_once(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def tell(*_: object) -> None:
        raise AssertionError("nobody was to be told")

    agent = GuardedGpuAgent("n0", GpudClient(tmp_path / "none.sock"), None, "act", tell, lambda: 0.0)
    for _ in range(5):
        asyncio.run(agent.tick())
    assert "no gpud at" in asyncio.run(agent.hold("pool", {world.a: Hold(1200)}, 15)).refused[world.a]
    assert agent.readings() == ()
    assert caplog.text.count("no gpud at") == 1


def test_an_agent_starts_a_gpud_of_its_own_and_taking_down_undoes_what_it_left(tmp_path: Path) -> None:
    """Simulated GPUs behind gpud: the same file that work is charged to."""
    site = NodeSite("simulated", tmp_path, "abcdef0123456789", 2, H100_SXM)
    found = open_guarded(site, 60.0, False, None)
    assert found.keeper is not None
    charged = open_charged("simulated", tmp_path, "abcdef0123456789", "training:job")
    assert isinstance(charged, GuardedNode)
    uuid = charged.uuid_of(0)
    assert found.client.schedule("training:job", [uuid], 30).refused == {}
    charged.lock_freq(0, 990)
    eventually(lambda: charged.state(0).freq_mhz == 990)
    assert charged.gpus()[0].uuid == uuid
    assert open_guarded(site, 60.0, False, None).client.path == found.client.path  # it is taken over, not started again
    assert restore_defaults(tmp_path) == []
    assert charged.state(0).target_mhz == 1980
    assert not found.client.path.exists()


def test_a_killed_gpud_of_its_own_is_started_again_and_restored_from(tmp_path: Path) -> None:
    site = NodeSite("simulated", tmp_path, "abcdef0123456789", 2, H100_SXM)
    found = open_guarded(site, 60.0, False, None)
    assert found.keeper is not None
    charged = open_charged("simulated", tmp_path, "abcdef0123456789", "job")
    found.client.schedule("job", [charged.uuid_of(1)], 30)
    charged.lock_freq(1, 990)
    process = found.keeper._process
    assert process is not None
    process.kill()
    process.wait()
    assert charged.state(1).target_mhz == 990
    found.keeper.look_after()
    eventually(lambda: charged.state(1).target_mhz == 1980)
    eventually(found.keeper._answers)
    found.client.schedule("job", [charged.uuid_of(1)], 30)
    charged.lock_freq(1, 990)
    again = found.keeper._process
    assert again is not None
    again.kill()
    again.wait()
    assert restore_defaults(tmp_path) == ["1 GPUs were left set by a gpud that is gone: reset"]
    assert charged.state(1).target_mhz == 1980
