import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from actors.cluster_manager import ClusterManager, ClusterPorts
from actors.messages import Decision, GpuReading, PoolStatus
from actors.peers import PeerAwayError
from control_plane.domain import ClassLoad, InputClass, Load, PoolName
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.hosting import ClusterHost
from control_plane.serving.load_forecast import Forecast
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policy import Site
from control_plane.settings import Settings

PROFILE = RooflineProfile()
SETTINGS = Settings()
SITE = Site(SETTINGS, PROFILE, 32, PROFILE.gpu.idle_w, Load())
POLICY = make_policy("wattray", SITE)
SHORT, LONG = (pool.pool for pool in SETTINGS.pools)
T = TypeVar("T")


class World:
    """Two pool managers, a forecaster and GPUs; every one of them may be away."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.gpus = 32
        self.away: set[str] = set()
        self.load = Load({InputClass.LONG: ClassLoad(6.0, 2000, 200), InputClass.MEDIUM: ClassLoad(1.0, 600, 200)})
        self.budgets: dict[PoolName, int | None] = {SHORT: None, LONG: None}
        self.manager = self.new_manager()

    def new_manager(self) -> ClusterManager:
        ports = ClusterPorts(
            self.answering("forecaster", lambda: Forecast(self.load, self.load)),
            self.set_budget,
            self.pool_status,
            self.pool_decisions,
            self.answering("agents", lambda: ((GpuReading("g", 1980, 1980, 100.0, 5.0, None),), ("gpu_agent:n1",))),
            self.answering("nodes", lambda: self.gpus),
        )
        return ClusterManager(
            SETTINGS, lambda budgets: ClusterHost(POLICY, budgets), (SHORT, LONG), ports,
            lambda: self.now_s, lambda: 1000 + self.now_s,
        )  # fmt: skip

    def answering(self, name: str, answer: Callable[[], T]) -> Callable[[], Awaitable[T]]:
        async def ask() -> T:
            if name in self.away:
                raise PeerAwayError(f"{name} does not answer")
            return answer()

        return ask

    async def set_budget(self, pool: PoolName, gpus: int) -> None:
        if pool in self.away:
            raise PeerAwayError(f"{pool} does not answer")
        self.budgets[pool] = gpus

    async def pool_status(self, pool: PoolName) -> PoolStatus:
        if pool in self.away:
            raise PeerAwayError(f"{pool} does not answer")
        return PoolStatus(pool, self.budgets[pool], (), {}, {}, 0.0, "")

    async def pool_decisions(self, pool: PoolName, last: int) -> tuple[Decision, ...]:
        if pool in self.away:
            raise PeerAwayError(f"{pool} does not answer")
        return (Decision(f"{pool}-1", 1000.0, pool, "", ""),)

    def tick(self) -> None:
        asyncio.run(self.manager.tick())
        self.now_s += 5.0


def test_a_manager_that_restarts_plans_with_the_load_of_now_not_of_its_first_day() -> None:
    world = World()
    world.tick()
    first = dict(world.budgets)
    world.load = Load({InputClass.MEDIUM: ClassLoad(9.0, 600, 200)})
    world.manager = world.new_manager()
    world.tick()
    assert world.budgets != first
    assert (world.budgets[SHORT] or 0) > (world.budgets[LONG] or 0)


def test_a_manager_that_restarts_without_a_forecast_leaves_the_budgets_as_they_are() -> None:
    world = World()
    world.budgets = {SHORT: 20, LONG: 12}
    world.away.add("forecaster")
    world.tick()
    assert world.budgets == {SHORT: 20, LONG: 12}
    world.away.clear()
    world.tick()
    assert world.budgets != {SHORT: 20, LONG: 12}


def test_a_pool_manager_that_restarted_is_told_its_budget_at_the_next_tick() -> None:
    world = World()
    world.tick()
    given = world.budgets[LONG]
    world.budgets[LONG] = None
    world.tick()
    assert world.budgets[LONG] == given


def test_lost_gpus_are_taken_out_of_the_budgets_at_once() -> None:
    world = World()
    world.tick()
    world.gpus = 16
    world.tick()
    assert sum(budget or 0 for budget in world.budgets.values()) == 16
    world.away.add("nodes")
    world.tick()
    assert sum(budget or 0 for budget in world.budgets.values()) == 16


def test_status_tells_what_answers_and_names_what_does_not() -> None:
    world = World()
    world.tick()
    world.away.add(LONG)
    status = asyncio.run(world.manager.status())
    assert [pool.pool for pool in status.pools] == [SHORT]
    assert status.missing == ("pool_manager:long", "gpu_agent:n1")
    assert status.power_w == 100.0
    world.away.add("agents")
    assert asyncio.run(world.manager.status()).gpus == ()


def test_decisions_of_the_managers_that_answer_are_told_and_their_names_never_repeat() -> None:
    world = World()
    for _ in range(600):
        world.load = world.load.scaled(1.001)
        world.now_s += SETTINGS.cadence.cluster_s
        world.gpus = 40 - world.gpus + 8
        world.tick()
    world.away.add(LONG)
    told = asyncio.run(world.manager.explain(1000))
    assert len({decision.decision_id for decision in told}) == len(told) > 900
    assert asyncio.run(world.manager.explain(0)) == ()
