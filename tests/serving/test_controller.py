import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.actions import SetFrequency, SetGpuBudget, SetReplicas
from control_plane.domain import ClassLoad, InputClass, Load, PoolName, ReplicaId, ReplicaState, ReplicaView
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.controller import LeastPowerCluster, LeastPowerPool, share_gpus
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot
from control_plane.settings import parse_settings

PROFILE = RooflineProfile()
SETTINGS = parse_settings(
    {"sharding": {"scale_down_hold_s": 60, "startup_s": 5}, "cadence": {"pool_s": 30, "frequency_s": 5}}
)
LONG = SETTINGS.pool_settings(PoolName("long"))


def load(rps: float) -> Load:
    return Load({InputClass.LONG: ClassLoad(rps, 2000, 200)})


def controller() -> LeastPowerPool:
    return LeastPowerPool(LONG, SETTINGS, PROFILE, PROFILE.gpu.idle_w, PROFILE.gpu.context_w)


def seen(now_s: float, rps: float, replicas: tuple[ReplicaView, ...] = (), budget: int = 32) -> PoolSnapshot:
    return PoolSnapshot(now_s, LONG.pool, budget, load(rps), load(rps), replicas)


def ready(name: str, tp: int, freq_mhz: int = 1980) -> ReplicaView:
    return ReplicaView(ReplicaId(name), tp, freq_mhz, ReplicaState.READY)


def counts(step_actions: tuple[object, ...]) -> list[tuple[int, int]]:
    return [(a.tp, a.replicas) for a in step_actions if isinstance(a, SetReplicas)]


def test_an_empty_pool_gets_its_first_replicas() -> None:
    step = controller().step(seen(0, 2.0))
    assert len(counts(step.actions)) == 1
    assert step.wake_at_s == 5


def test_a_pool_without_load_keeps_one_small_replica() -> None:
    step = controller().step(seen(0, 0.0))
    [(_, replicas)] = counts(step.actions)
    assert replicas == 1


def test_a_burst_is_answered_before_the_next_planning_period() -> None:
    pool = controller()
    [(tp, replicas)] = counts(pool.step(seen(0, 1.0)).actions)
    views = tuple(ready(f"r{n}", tp) for n in range(replicas))
    step = pool.step(seen(5, 12.0, views))
    assert sum(size * count for size, count in counts(step.actions)) > tp * replicas


def test_fewer_replicas_only_once_that_has_been_enough_for_the_hold() -> None:
    pool = controller()
    [(tp, replicas)] = counts(pool.step(seen(0, 14.0)).actions)
    views = tuple(ready(f"r{n}", tp) for n in range(replicas))
    shrunk_at_s = []
    for now_s in range(5, 200, 5):
        if counts(pool.step(seen(now_s, 1.0, views)).actions):
            shrunk_at_s.append(now_s)
    assert shrunk_at_s
    assert min(shrunk_at_s) >= 60


def test_a_change_that_costs_more_than_it_saves_is_left_alone() -> None:
    slow_start = parse_settings(
        {"sharding": {"scale_down_hold_s": 60, "startup_s": 100_000}, "cadence": {"pool_s": 30}}
    )
    pool = LeastPowerPool(LONG, slow_start, PROFILE, PROFILE.gpu.idle_w, PROFILE.gpu.context_w)
    wasteful = (ready("a", 8),)
    changed = [counts(pool.step(seen(now_s, 0.3, wasteful)).actions) for now_s in range(0, 400, 5)]
    assert all(change == [] for change in changed)


def test_clocks_follow_the_load_and_repeat_nothing() -> None:
    pool = controller()
    [(tp, _)] = counts(pool.step(seen(0, 0.5)).actions)
    view = ready("r0", tp)
    clocks = []
    for now_s in range(5, 60, 5):
        actions = pool.step(seen(now_s, 0.5, (view,))).actions
        for action in actions:
            if isinstance(action, SetFrequency):
                clocks.append(action.freq_mhz)
                view = dataclasses.replace(view, freq_mhz=action.freq_mhz)
    assert len(clocks) == 1
    assert clocks[0] < 1980


def test_every_action_says_why() -> None:
    pool = controller()
    actions = pool.step(seen(0, 2.0)).actions
    actions += pool.step(seen(50, 2.0, (ready("a", 8),))).actions
    assert actions
    assert all(action.why for action in actions)


needs = st.dictionaries(st.sampled_from(["a", "b", "c"]).map(PoolName), st.integers(1, 64), min_size=1)


@given(needs, st.integers(1, 128), st.sampled_from([1, 2, 4]))
def test_budgets_use_every_replica_that_fits_and_cover_the_needs_where_they_fit(
    wanted: dict[PoolName, int], gpus: int, smallest: int
) -> None:
    budgets = share_gpus(wanted, gpus, smallest)
    assert sum(budgets.values()) == gpus // smallest * smallest
    assert all(budget % smallest == 0 for budget in budgets.values())
    if sum(-(-need // smallest) * smallest for need in wanted.values()) <= gpus:
        assert all(budgets[pool] >= need for pool, need in wanted.items())
    if len(wanted) <= gpus // smallest:
        assert all(budget > 0 for budget in budgets.values())


def test_one_gpu_is_given_to_a_pool_and_two_pools_share_two() -> None:
    a, b = PoolName("a"), PoolName("b")
    assert share_gpus({a: 1}, 1, 1) == {a: 1}
    assert share_gpus({a: 8, b: 2}, 2, 1) == {a: 1, b: 1}
    assert share_gpus({a: 2, b: 8}, 3, 2) == {a: 0, b: 2}


def test_the_cluster_gives_the_busier_pool_more() -> None:
    cluster = LeastPowerCluster(SETTINGS, PROFILE, PROFILE.gpu.idle_w)
    short = Load({InputClass.MEDIUM: ClassLoad(1.0, 600, 200)})
    forecast = {PoolName("long"): load(8.0), PoolName("short-medium"): short}
    step = cluster.step(ClusterSnapshot(0.0, 32, forecast, {}))
    budgets = {a.pool: a.gpus for a in step.actions if isinstance(a, SetGpuBudget)}
    assert budgets[PoolName("long")] > budgets[PoolName("short-medium")] > 0
    again = cluster.step(ClusterSnapshot(0.0, 32, forecast, budgets))
    assert again.actions == ()


@pytest.mark.parametrize("gpus", [4, 8, 16, 32])
def test_no_plan_ever_leaves_the_budget(gpus: int) -> None:
    pool = controller()
    views: tuple[ReplicaView, ...] = ()
    for now_s, rps in enumerate([0.1, 3, 30, 100, 2, 0.5, 8]):
        for tp, replicas in counts(pool.step(seen(now_s * 100.0, rps, views, gpus)).actions):
            assert tp * replicas <= gpus
