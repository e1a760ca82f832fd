import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest

from actors.messages import ControlPlaneStatus, Held, Orders, ReplicaReport
from actors.peers import PeerAwayError
from actors.pool_manager import FORECAST_STALE_S, PoolManager, PoolRules
from control_plane.actions import Action, SetFrequency, SetGovernor, SetGpuBudget, SetPowerLimit, SetReplicas, Step
from control_plane.domain import ClassLoad, InputClass, Load, PoolName, ReplicaId, ReplicaState, Role
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.leases import Hold
from control_plane.serving.advice import AdviceLog
from control_plane.serving.hosting import PoolHost
from control_plane.serving.load_forecast import Forecast
from control_plane.serving.policies.combined import CombinedPolicy
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policy import PoolController, Site
from control_plane.serving.snapshots import PoolSnapshot
from control_plane.settings import Settings
from wattray.advise import advice_json, advice_told

PROFILE = RooflineProfile()
SETTINGS = Settings()
LONG = SETTINGS.pool_settings(PoolName("long"))
SITE = Site(SETTINGS, PROFILE, 32, PROFILE.gpu.idle_w, Load())


class Scripted(CombinedPolicy):
    """A policy whose pool controller does what a test says, once."""

    def __init__(self, *actions: Action) -> None:
        super().__init__(SITE)
        self._actions: Sequence[Action] = actions

    def pool(self, pool: PoolName) -> PoolController:
        actions = self._actions

        class Script:
            seen: PoolSnapshot | None = None

            def step(self, seen: PoolSnapshot) -> Step:
                first, self.seen = self.seen is None, seen
                return Step(tuple(actions) if first and seen.replicas else (), seen.now_s)

            def plan(self) -> str:
                return "a script"

        return Script()


class World:
    """What the manager touches, and what it did."""

    def __init__(
        self, policy: CombinedPolicy | None = None, control: Literal["act", "recommend"] = "act", settle_s: float = 0.0
    ) -> None:
        self.now_s = 0.0
        self.load = Load({InputClass.LONG: ClassLoad(1.0, 2000, 200)})
        self.counts: list[tuple[int, int]] = []
        self.held: dict[str, Hold] = {}
        self.calls: list[str] = []
        self.agent_down = self.forecast_down = self.serve_down = self.stuck = False
        self.policy = policy or make_policy("wattray", SITE)
        self.control: Literal["act", "recommend"] = control
        self.manager = self.new_manager(settle_s)

    def new_manager(self, settle_s: float = 0.0, gpu_budget: int | None = 32) -> PoolManager:
        rules = PoolRules(PROFILE.freqs_mhz[-1], 15.0, 5.0, self.control, gpu_budget, settle_s)
        advice = AdviceLog(PROFILE) if self.control == "recommend" else None
        return PoolManager(
            LONG.pool, PoolHost(self.policy, LONG.pool), rules, self.forecast, self.hold, self.set_count,
            lambda: self.now_s, lambda: 1000 + self.now_s, advice=advice,
        )  # fmt: skip

    async def forecast(self) -> Forecast:
        self.calls.append("forecast")
        if self.forecast_down:
            raise PeerAwayError("load_forecaster does not answer")
        return Forecast(self.load, self.load)

    async def hold(self, node: str, owner: str, wishes: Mapping[str, Hold], ttl_s: float, epoch: int) -> Held:
        self.calls.append("hold")
        if self.agent_down:
            raise PeerAwayError("no such actor")
        self.held = dict(wishes)
        sets_clocks = self.control == "act" and not self.stuck
        clocks = {uuid: (wish.freq_mhz if sets_clocks else None) or 1980 for uuid, wish in wishes.items()}
        return Held(clocks, {})

    async def set_count(self, pool: PoolName, tp: int, role: Role, replicas: int) -> None:
        if self.serve_down:
            raise RuntimeError("Serve refused")
        self.counts.append((tp, replicas))

    def clocks(self) -> dict[str, int | None]:
        return {uuid: wish.freq_mhz for uuid, wish in self.held.items()}

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
    [freq_mhz] = set(world.clocks().values())
    assert freq_mhz is not None
    assert freq_mhz < 1980


def test_a_waiting_first_token_brings_full_clock_within_a_tick() -> None:
    world = World()
    asyncio.run(world.run(30, {"a": 4}))
    asyncio.run(world.run(5, {"a": 4}, waits_s=1.5))
    assert set(world.clocks().values()) == {1980}


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


def test_leases_are_renewed_before_anybody_else_is_asked() -> None:
    world = World()
    asyncio.run(world.run(10, {"a": 4}))
    world.calls.clear()
    world.report("a", 4)
    asyncio.run(world.manager.tick())
    assert world.calls.index("hold") < world.calls.index("forecast")


def test_leases_are_renewed_while_the_forecaster_is_away_and_let_go_when_it_stays_away() -> None:
    world = World()
    asyncio.run(world.run(30, {"a": 4}))
    world.forecast_down = True
    asyncio.run(world.run(30, {"a": 4}))
    assert len(world.held) == 4
    asyncio.run(world.run(int(FORECAST_STALE_S), {"a": 4}))
    assert world.held == {}
    assert "full clock" in world.manager.decisions()[-1].action


def test_where_it_only_recommends_it_scales_nothing_that_runs() -> None:
    world = World(control="recommend")
    asyncio.run(world.run(60, {"a": 2, "b": 2, "c": 2}))
    assert world.counts == []
    assert {decision.outcome for decision in world.manager.decisions()} == {"recommended"}


def test_where_it_only_recommends_an_empty_pool_still_gets_its_first_replicas() -> None:
    world = World(control="recommend")
    asyncio.run(world.run(5, {}))
    assert len(world.counts) == 1


def test_status_tells_the_clock_that_runs_from_the_clock_that_is_wanted() -> None:
    world = World(control="recommend")
    asyncio.run(world.run(30, {"a": 4}))
    status = world.manager.status()
    assert status.clocks_mhz == {"a": 1980}
    assert status.wished_mhz["a"] < 1980


def test_where_it_only_recommends_it_counts_what_acting_would_have_saved() -> None:
    world = World(control="recommend")
    asyncio.run(world.run(120, {"a": 8, "b": 8}))
    status = world.manager.status()
    assert world.counts == []
    assert status.advice is not None
    assert status.advice.watched_s == 115
    assert 0 < status.advice.saved_by_clocks_j < status.advice.used_j
    assert status.advice.error_j > 0
    now = ControlPlaneStatus("", "recommend", (status,), (), 0.0, 0.0)
    told = advice_told(now, tariff=0.2)
    assert told[0].startswith("control would have ")
    assert "at 0.2 per kWh" in told[0]
    assert any("short" in line for line in told)
    assert advice_json(now, None)["pools"]["long"]["watched_s"] == 115
    assert World().manager.status().advice is None


def test_the_policy_is_shown_the_clock_that_was_observed() -> None:
    world = World()
    world.stuck = True
    asyncio.run(world.run(30, {"a": 4}))
    assert world.manager.status().clocks_mhz == {"a": 1980}
    assert any("1980" in decision.outcome for decision in world.manager.decisions())


def test_a_count_that_serve_refused_is_no_decision_that_was_done() -> None:
    world = World()
    world.serve_down = True
    asyncio.run(world.run(5, {}))
    [refused] = world.manager.decisions()
    assert refused.outcome == "failed: Serve refused"
    world.serve_down = False
    asyncio.run(world.run(5, {}))
    assert world.manager.decisions()[-1].outcome == "done"


def test_a_manager_that_restarted_listens_before_it_acts_and_waits_for_its_budget() -> None:
    world = World(settle_s=3.0)
    asyncio.run(world.run(5, {}))
    assert world.counts == []
    world.manager = world.new_manager(gpu_budget=None)
    asyncio.run(world.run(20, {}))
    assert world.counts == []
    world.manager.set_gpu_budget(8)
    asyncio.run(world.run(5, {}))
    assert all(tp * replicas <= 8 for tp, replicas in world.counts)
    assert world.counts


def test_decision_identifiers_never_repeat_not_even_after_a_restart() -> None:
    names = []
    world = World()
    for _ in range(2):
        asyncio.run(world.run(30, {"a": 4}))
        asyncio.run(world.run(5, {"a": 4}, waits_s=1.5))
        names += [decision.decision_id for decision in world.manager.decisions()]
        world.manager = world.new_manager()
    assert len(set(names)) == len(names) > 2


def test_power_limits_and_governor_bounds_reach_those_who_hold_them() -> None:
    a = ReplicaId("a")
    world = World(
        Scripted(SetPowerLimit(a, 500.0, "hot"), SetGovernor(a, 990, 1590, "calm"), SetFrequency(a, 1590, ""))
    )
    asyncio.run(world.run(10, {"a": 2}))
    assert set(world.held.values()) == {Hold(1590, 500.0)}
    uuids = ("a-gpu0", "a-gpu1")
    report = ReplicaReport(a, LONG.pool, 2, "n0", uuids, ReplicaState.READY, 0, 0, 0.0)
    assert world.manager.report(report) == Orders(990, 1590)


def test_a_pool_controller_that_sets_budgets_is_refused() -> None:
    world = World(Scripted(SetGpuBudget(LONG.pool, 4, "")))
    with pytest.raises(ValueError, match="may not set a budget"):
        asyncio.run(world.run(5, {"a": 2}))


def test_no_decision_is_returned_where_none_is_asked_for() -> None:
    world = World()
    asyncio.run(world.run(10, {"a": 4}))
    assert world.manager.decisions(0) == ()


def test_a_replica_that_still_starts_counts_and_holds_no_clock() -> None:
    world = World(Scripted(SetReplicas(LONG.pool, 2, 1, "", Role.COMBINED)))
    report = ReplicaReport(ReplicaId("a"), LONG.pool, 2, "n0", ("x", "y"), ReplicaState.STARTING, 0, 0, 0.0)
    world.manager.report(report)
    asyncio.run(world.manager.tick())
    assert world.held == {}


def test_counts_that_were_ordered_are_told_to_autoscalers_and_no_others() -> None:
    async def wanted(world: World) -> dict[tuple[int, str], int]:
        await world.run(15, {})
        return world.manager.wanted_replicas()

    world = World()
    counts = asyncio.run(wanted(world))
    assert [((tp, "combined"), replicas) for tp, replicas in world.counts[-1:]] == list(counts.items())
    refused = World()
    refused.serve_down = True
    assert asyncio.run(wanted(refused)) == {}
