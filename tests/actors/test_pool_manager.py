import asyncio
from collections.abc import Mapping

from actors.messages import Forecast, ReplicaReport
from actors.pool_manager import PoolManager
from control_plane.domain import ClassLoad, InputClass, Load, PoolName, ReplicaId, ReplicaState
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.controller import PoolController
from control_plane.settings import Settings

PROFILE = RooflineProfile()
SETTINGS = Settings()
LONG = SETTINGS.pool_settings(PoolName("long"))


class World:
    """What the manager touches, and what it did."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.load = Load({InputClass.LONG: ClassLoad(1.0, 2000, 200)})
        self.counts: list[tuple[int, int]] = []
        self.held: dict[str, int] = {}
        self.agent_down = False
        self.manager = self.new_manager()

    def new_manager(self) -> PoolManager:
        controller = PoolController(LONG, SETTINGS, PROFILE, PROFILE.gpu.idle_w, PROFILE.gpu.context_w)
        return PoolManager(
            LONG.pool, controller, 32, 15.0, 5.0, self.forecast, self.hold, self.set_count,
            lambda: self.now_s, lambda: 1000 + self.now_s,
        )  # fmt: skip

    async def forecast(self) -> Forecast:
        return Forecast(self.load, self.load)

    async def hold(self, node: str, owner: str, wanted: Mapping[str, int], ttl_s: float) -> Mapping[str, int]:
        if self.agent_down:
            raise ValueError("no such actor")
        self.held = dict(wanted)
        return wanted

    async def set_count(self, pool: PoolName, tp: int, replicas: int) -> None:
        self.counts.append((tp, replicas))

    def report(self, name: str, tp: int, waits_s: float = 0.0) -> None:
        uuids = tuple(f"{name}-gpu{index}" for index in range(tp))
        self.manager.report(
            ReplicaReport(ReplicaId(name), LONG.pool, tp, "n0", uuids, ReplicaState.READY, 0, 0, waits_s)
        )

    async def run(self, seconds: int, replicas: Mapping[str, int], waits_s: float = 0.0) -> None:
        for _ in range(0, seconds, 5):
            for name, tp in replicas.items():
                self.report(name, tp, waits_s)
            await self.manager.tick()
            await asyncio.sleep(0)
            self.now_s += 5


def test_it_asks_for_its_first_replicas_once() -> None:
    world = World()
    asyncio.run(world.run(10, {}))
    assert len(world.counts) == 1


def test_it_asks_again_when_nothing_came_of_it() -> None:
    world = World()
    asyncio.run(world.run(60, {}))
    assert len(world.counts) >= 3
    assert len(set(world.counts)) == 1


def test_it_lowers_every_gpu_of_a_replica_together() -> None:
    world = World()
    asyncio.run(world.run(30, {"a": 4}))
    assert set(world.held) == {f"a-gpu{index}" for index in range(4)}
    assert len(set(world.held.values())) == 1
    assert next(iter(world.held.values())) < 1980


def test_a_waiting_first_token_brings_full_clock_within_a_tick() -> None:
    world = World()
    asyncio.run(world.run(30, {"a": 4}))
    asyncio.run(world.run(5, {"a": 4}, waits_s=1.5))
    assert set(world.held.values()) == {1980}


def test_a_silent_replica_is_dropped_and_its_clocks_are_not_renewed() -> None:
    world = World()
    asyncio.run(world.run(30, {"a": 4, "b": 4}))
    asyncio.run(world.run(15, {"a": 4}))
    assert set(world.held) == {f"a-gpu{index}" for index in range(4)}


def test_a_restarted_manager_learns_its_replicas_from_their_reports() -> None:
    world = World()
    asyncio.run(world.run(30, {"a": 4}))
    asked = list(world.counts)
    world.manager = world.new_manager()
    asyncio.run(world.run(30, {"a": 4}))
    assert world.counts == asked
    assert set(world.held) == {f"a-gpu{index}" for index in range(4)}


def test_an_agent_that_is_away_does_not_stop_the_manager() -> None:
    world = World()
    world.agent_down = True
    asyncio.run(world.run(20, {"a": 4}))
    world.agent_down = False
    asyncio.run(world.run(10, {"a": 4}))
    assert world.held


def test_every_decision_is_explained() -> None:
    world = World()
    asyncio.run(world.run(30, {"a": 4}))
    asyncio.run(world.run(5, {"a": 4}, waits_s=1.5))
    decisions = world.manager.decisions()
    assert len({decision.decision_id for decision in decisions}) == len(decisions) >= 2
    assert all(decision.why and decision.action for decision in decisions)


def test_a_paused_manager_does_nothing() -> None:
    world = World()
    world.manager.pause()
    asyncio.run(world.run(20, {}))
    assert world.counts == []
