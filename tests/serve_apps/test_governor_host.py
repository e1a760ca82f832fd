"""A policy's governor inside a replica: when it is asked, what its answer becomes, and who carries it out."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from actors.gpu.simulated import SimulatedNode
from actors.gpu_agent import GpuAgent
from actors.messages import Orders
from actors.peers import PeerAwayError
from control_plane.domain import QueuedPrompt, QueueView, Role
from control_plane.leases import Hold
from serve_apps import governor_host
from serve_apps.governor_host import ClockRange, GovernorHost

FREQS = (210, 600, 1200, 1980)


class Toy:
    """Full clock while a prompt waits, the lowest otherwise."""

    def __init__(self) -> None:
        self.looks: list[int] = []

    def look(self, queue: QueueView, now_s: float) -> int:
        self.looks.append(len(queue.queued))
        return 1980 if queue.queued else 100


class Replica:
    """A queue that the test fills, and an agent's lease that it reads."""

    def __init__(self) -> None:
        self.prompts: tuple[QueuedPrompt, ...] = ()
        self.held: list[dict[str, int]] = []
        self.away = False

    def queue(self) -> QueueView:
        return QueueView(2, Role.COMBINED, 600, self.prompts, 0, 0, 0, 1000)

    async def hold(self, clocks: Mapping[str, int], ttl_s: float) -> None:
        assert ttl_s == 9.0
        if self.away:
            raise PeerAwayError("the agent does not answer")
        self.held.append(dict(clocks))


def host_of(replica: Replica, governor: object, clock_s: list[float]) -> GovernorHost:
    clocks = ClockRange(FREQS, 9.0)
    return GovernorHost(governor, replica.queue, replica.hold, ("g0", "g1"), clocks, lambda: clock_s[0])  # type: ignore[arg-type]


def test_the_clock_is_a_clock_there_is_and_is_renewed_in_time() -> None:
    async def run() -> None:
        now, replica = [0.0], Replica()
        host = host_of(replica, Toy(), now)
        await host.look()
        assert replica.held == [{"g0": 210, "g1": 210}]
        now[0] = 2.0
        await host.look()
        assert len(replica.held) == 1
        now[0] = 3.0
        await host.look()
        assert len(replica.held) == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("orders", "idle_mhz", "busy_mhz"),
    [
        (Orders(), 210, 1980),
        (Orders(600, 1200), 600, 1200),
        (Orders(700, None), 1200, 1980),
        (Orders(None, 600), 210, 600),
        (Orders(5000, 5000), 1980, 1980),
        (Orders(0, 100), 210, 210),
        (Orders(1200, 600), 1200, 1200),
    ],
)
def test_it_stays_within_the_bounds_that_were_ordered(orders: Orders, idle_mhz: int, busy_mhz: int) -> None:
    async def run() -> None:
        replica = Replica()
        host = host_of(replica, Toy(), [0.0])
        host.order(orders)
        await host.look()
        replica.prompts = (QueuedPrompt(0.0, 10, 10, 0.25),)
        await host.look()
        assert replica.held[0]["g0"] == idle_mhz
        assert replica.held[-1]["g0"] == busy_mhz

    asyncio.run(run())


def test_it_looks_at_once_when_a_request_arrives_and_when_bounds_change() -> None:
    async def run() -> None:
        replica, toy = Replica(), Toy()
        host = host_of(replica, toy, [0.0])
        running = asyncio.create_task(host.run())
        await asyncio.sleep(0.02)
        assert toy.looks == [0]
        began_s = time.monotonic()
        replica.prompts = (QueuedPrompt(0.0, 10, 10, 0.25),) * 2
        host.arrived()
        host.arrived()
        await asyncio.sleep(0.02)
        assert toy.looks == [0, 2]
        assert replica.held[-1] == {"g0": 1980, "g1": 1980}
        host.order(Orders(None, 1200))
        await asyncio.sleep(0.02)
        assert replica.held[-1] == {"g0": 1200, "g1": 1200}
        assert time.monotonic() - began_s < governor_host.LOOK_S
        running.cancel()

    asyncio.run(run())


def test_it_looks_every_second_and_outlives_an_absent_agent_and_its_own_errors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(governor_host, "LOOK_S", 0.01)

    class Broken(Toy):
        def look(self, queue: QueueView, now_s: float) -> int:
            super().look(queue, now_s)
            if len(self.looks) == 3:
                raise ZeroDivisionError("a bug of the policy")
            return 600

    async def run() -> None:
        replica, broken = Replica(), Broken()
        replica.away = True
        running = asyncio.create_task(host_of(replica, broken, [0.0]).run())
        await asyncio.sleep(0.08)
        replica.away = False
        await asyncio.sleep(0.05)
        assert len(broken.looks) >= 6
        assert replica.held == [{"g0": 600, "g1": 600}]
        running.cancel()

    asyncio.run(run())
    assert "the clock is not held" in caplog.text
    assert "a bug of the policy" in caplog.text


def test_with_a_real_agent_the_clock_follows_and_a_dead_governors_lease_lapses(tmp_path: Path) -> None:
    node = SimulatedNode.create(tmp_path / "gpus.bin", 2)
    now = [0.0]
    agent = GpuAgent("n", lambda: node, "act", lambda: now[0])
    uuids = [node.gpu(0).uuid, node.gpu(1).uuid]

    async def hold(clocks: Mapping[str, int], ttl_s: float) -> None:
        agent.hold("governor:r0", {uuid: Hold(freq_mhz) for uuid, freq_mhz in clocks.items()}, ttl_s)

    async def run() -> None:
        replica = Replica()
        clocks = ClockRange((345, 600, 1200, 1980), 9.0)
        host = GovernorHost(Toy(), replica.queue, hold, uuids, clocks, lambda: now[0])
        await host.look()
        assert agent.leases() == dict.fromkeys(uuids, ("governor:r0", 345))
        now[0] = 10.0
        await agent.tick()
        assert agent.leases() == {}

    monkey = pytest.MonkeyPatch()
    monkey.setattr("actors.gpu_agent.metrics.gpu", lambda reading, spent_j: None)
    try:
        asyncio.run(run())
    finally:
        monkey.undo()
