"""The simulator and the live actors host the same policy parts: one recorded input gives the same decisions in both.

The simulator runs a trace and everything that its policy was asked is recorded; then the live actors, with fakes in
Ray's place, are asked the same.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from actors.cluster_manager import ClusterManager, ClusterPorts
from actors.load_forecaster import LoadForecaster
from actors.messages import Decision, GpuReading, Held, PoolStatus, ReplicaReport
from actors.pool_manager import STALE_S, PoolManager, PoolRules
from control_plane.actions import Action, SetFrequency, SetGpuBudget, SetReplicas, Step
from control_plane.domain import InputClass, Load, PoolName, ReplicaState, ReplicaView, Role
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.leases import Hold
from control_plane.serving.hosted_policy import MAX_TOKENS, HostedPolicy
from control_plane.serving.hosting import ClusterHost, PoolHost, RouterHost
from control_plane.serving.load_forecast import Forecast
from control_plane.serving.policies import registry
from control_plane.serving.policies.single_pool import QuickestRouter
from control_plane.serving.policy import (
    ClusterController,
    Governor,
    HandOver,
    Needs,
    Policy,
    PoolController,
    RoutedRequest,
    Router,
    Site,
)
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot
from control_plane.settings import PoolSettings, Settings, parse_settings
from control_plane.simulation.serving_cluster import SimulatedCluster
from control_plane.simulation.trace import Trace
from control_plane.simulation.traces import synthetic_conversation
from control_plane.simulation.what_if import hosted_policy

PROFILE = RooflineProfile()
GPUS = 32
TICK_S = STALE_S + 1
"""Longer than a silent replica is remembered live: the simulator forgets it at once."""
SETTINGS = parse_settings(
    {
        "cadence": {"cluster_s": 30.0, "pool_s": 14.0, "frequency_s": TICK_S},
        "sharding": {"scale_down_hold_s": 20.0, "startup_s": 10.0},
        "forecast": {"bin_s": 5.0, "window_bins": 3, "peak_hold_s": 30.0},
        "serve": {"warm_start": False},
    }
)


class Toy:
    """The smallest policy there is: one pool, as many TP2 replicas as arrive requests a second, one clock."""

    needs = Needs()
    pools: Sequence[PoolSettings] = (PoolSettings(name="toy", input_classes=tuple(InputClass)),)
    splits_phases = False
    takes_quickest = False

    def __init__(self, site: Site) -> None:
        self.gpus = site.gpus

    def router(self) -> Router:
        return QuickestRouter()

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return None

    def pool(self, pool: PoolName) -> PoolController:
        return ToyPool()

    def cluster(self) -> ClusterController:
        return ToyCluster()


class ToyPool:
    def step(self, seen: PoolSnapshot) -> Step:
        wanted = max(1, min(seen.gpu_budget // 2, round(seen.reactive.rps)))
        running = sum(view.counts for view in seen.replicas)
        actions: list[Action] = [] if running == wanted else [SetReplicas(PoolName("toy"), 2, wanted, "toy")]
        ready = [view for view in seen.replicas if view.state is ReplicaState.READY]
        actions += [SetFrequency(view.replica_id, 1590, "toy") for view in ready if view.freq_mhz != 1590]
        return Step(tuple(actions), seen.now_s + TICK_S)

    def plan(self) -> str:
        return "toy"


class ToyCluster:
    def step(self, seen: ClusterSnapshot) -> Step:
        return Step((SetGpuBudget(PoolName("toy"), seen.gpus, "toy"),), seen.now_s + 600.0)


@dataclass(frozen=True)
class Asked:
    """One thing the simulator asked its policy, and the answer."""

    method: str
    given: tuple[object, ...]
    answer: object


class Recorded(HostedPolicy):
    def __init__(self, policy: Policy, first_load: Load) -> None:
        super().__init__(policy, SETTINGS.forecast, GPUS, first_load)
        self.asked: list[Asked] = []

    def _record(self, method: str, *given: object) -> object:
        answer = getattr(HostedPolicy, method)(self, *given)
        self.asked.append(Asked(method, given, answer))
        return answer

    def first_replicas(self):  # type: ignore[no-untyped-def]
        return self._record("first_replicas")

    def route(self, *given):  # type: ignore[no-untyped-def]
        return self._record("route", *given)

    def route_decode(self, *given):  # type: ignore[no-untyped-def]
        return self._record("route_decode", *given)

    def first_token(self, *given):  # type: ignore[no-untyped-def]
        self._record("first_token", *given)

    def ended(self, *given):  # type: ignore[no-untyped-def]
        self._record("ended", *given)

    def dropped(self, *given):  # type: ignore[no-untyped-def]
        self._record("dropped", *given)

    def step(self, *given):  # type: ignore[no-untyped-def]
        return self._record("step", *given)


class Live:
    """The live actors' classes with fakes in Ray's place, on a clock that the recording moves."""

    def __init__(self, policy: Policy, first_load: Load) -> None:
        self.now_s = 0.0
        self.router = RouterHost(policy)
        self.forecaster = LoadForecaster(policy.needs, SETTINGS.forecast, first_load, self.clock)
        self.counts: list[SetReplicas] = []
        self.wishes: dict[PoolName, dict[str, Hold]] = {}
        self.pools = {pool.pool: self.pool_manager(policy, pool.pool) for pool in policy.pools}
        ports = ClusterPorts(
            self.forecast_with_past,
            self.set_budget,
            self.pool_status,
            self.pool_decisions,
            self.readings,
            self.serving_gpus,
        )
        self.cluster = ClusterManager(
            SETTINGS, lambda budgets: ClusterHost(policy, budgets), tuple(self.pools), ports, self.clock, self.clock
        )

    def clock(self) -> float:
        return self.now_s

    def pool_manager(self, policy: Policy, pool: PoolName) -> PoolManager:
        rules = PoolRules(PROFILE.freqs_mhz[-1], 2 * TICK_S, TICK_S)
        return PoolManager(
            pool, PoolHost(policy, pool), rules, self.forecast, self.hold, self.set_count, self.clock, self.clock
        )

    async def forecast(self) -> Forecast:
        return self.forecaster.forecast()

    async def forecast_with_past(self) -> Forecast:
        return self.forecaster.forecast_with_past()

    async def set_budget(self, pool: PoolName, gpus: int) -> None:
        self.pools[pool].set_gpu_budget(gpus)

    async def pool_status(self, pool: PoolName) -> PoolStatus:
        return self.pools[pool].status()

    async def pool_decisions(self, pool: PoolName, last: int) -> tuple[Decision, ...]:
        return self.pools[pool].decisions(last)

    async def readings(self) -> tuple[tuple[GpuReading, ...], tuple[str, ...]]:
        return (), ()

    async def serving_gpus(self) -> int:
        return GPUS

    async def hold(self, node: str, owner: str, wishes: Mapping[str, Hold], ttl_s: float, epoch: int) -> Held:
        self.wishes[PoolName(owner.partition(":")[2])] = dict(wishes)
        return Held({uuid: wish.freq_mhz or PROFILE.freqs_mhz[-1] for uuid, wish in wishes.items()}, {})

    async def set_count(self, pool: PoolName, tp: int, role: Role, replicas: int) -> None:
        self.counts.append(SetReplicas(pool, tp, replicas, "", role))

    async def tick(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> None:
        self.now_s = now_s
        aged = [(now_s - a.at_s, a.input_tokens, a.expected_output_tokens) for a in self.router.take_arrivals()]
        self.forecaster.observe(aged)
        self.forecaster.answered(self.router.take_answers())
        for pool, view in replicas:
            self.pools[pool].report(report_of(pool, view))
        await self.cluster.tick()
        for manager in self.pools.values():
            await manager.tick()
        await asyncio.sleep(0)

    def wished_mhz(self) -> dict[str, int | None]:
        held = {uuid: wish for wishes in self.wishes.values() for uuid, wish in wishes.items()}
        return {uuid: wish.freq_mhz for uuid, wish in held.items()}


def report_of(pool: PoolName, view: ReplicaView) -> ReplicaReport:
    return ReplicaReport(
        view.replica_id, pool, view.tp, "n0", (str(view.replica_id),), view.state,
        view.waiting, view.running, view.oldest_wait_s, view.role, view.freq_mhz,
    )  # fmt: skip


def drive(live: Live, asked: Sequence[Asked]) -> int:
    """Ask the live actors what the simulator asked; every answer must be the same. Returns how many steps."""
    steps = 0
    for one in asked:
        match one.method, one.given:
            case "first_replicas", ():
                asyncio.run(live.tick(0.0, ()))
                assert bare(live.counts) == bare(one.answer)
            case "route", (now_s, key, input_tokens, candidates):
                request = RoutedRequest(key, input_tokens, MAX_TOKENS)
                live.router.admit(now_s, request)
                chosen = live.router.route(now_s, request, candidates)
                assert (None if chosen is None else (chosen.pool, chosen.replica_id)) == one.answer
            case "route_decode", given:
                assert live.router.route_decode(*given) == one.answer
            case "step", (now_s, replicas):
                compare_step(live, now_s, replicas, one.answer)
                steps += 1
            case method, given:
                getattr(live.router, method)(*given)
    return steps


def compare_step(live: Live, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]], answer: object) -> None:
    assert isinstance(answer, Step)
    live.counts.clear()
    before = live.wished_mhz()
    asyncio.run(live.tick(now_s, replicas))
    # Live, a count that was asked for a moment ago is not asked for again.
    assert set(bare(live.counts)) <= set(bare(answer.actions))
    after = live.wished_mhz()
    for action in answer.actions:
        if isinstance(action, SetFrequency):
            assert after[str(action.replica_id)] == action.freq_mhz
    changed = {uuid for uuid in after if after[uuid] != before.get(uuid)}
    assert changed <= {str(a.replica_id) for a in answer.actions if isinstance(a, SetFrequency)}


def bare(actions: object) -> list[tuple[PoolName, int, int]]:
    assert isinstance(actions, Sequence)
    return sorted((a.pool, a.tp, a.replicas) for a in actions if isinstance(a, SetReplicas))


@pytest.mark.parametrize("name", ["wattray", "combined", "single-pool", "toy"])
def test_the_same_recording_gives_the_same_decisions_live_and_in_the_simulator(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "POLICIES", {**registry.POLICIES, "toy": Toy})
    trace = Trace.of(synthetic_conversation(150.0, seed=3, scale=1.0))
    first = Load({})
    site = Site(SETTINGS, PROFILE, GPUS, 0.0, first, hand_over=HandOver(327_680.0, 50e9))
    recorded = Recorded(registry.make_policy(name, site), first)
    outcome = SimulatedCluster(PROFILE, GPUS, recorded, startup_s=10.0).run(trace, 200.0)
    assert outcome.done.all()
    steps = drive(Live(registry.make_policy(name, site), first), recorded.asked)
    assert steps >= {"single-pool": 1, "wattray": 3}.get(name, 20)


def test_a_new_policy_is_one_class_and_one_line_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "POLICIES", {**registry.POLICIES, "toy": Toy})
    trace = Trace.of(synthetic_conversation(60.0, seed=3, scale=0.5))
    fleet = hosted_policy("toy", trace, Settings(), PROFILE, 8, 0.0)
    outcome = SimulatedCluster(PROFILE, 8, fleet).run(trace)
    assert outcome.done.all()
    assert {pool for pool, _ in outcome.replicas} == {"toy"}
