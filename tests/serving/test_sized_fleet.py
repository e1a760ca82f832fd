"""Controllers of sized fleets: budgets follow the worst recent backlog, rise at once and fall late."""

from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from control_plane.actions import SetGpuBudget, SetReplicas
from control_plane.domain import Load, PoolName, ReplicaId, ReplicaState, ReplicaView, Role
from control_plane.serving.arrival_log import Answers, Arrivals
from control_plane.serving.sized_fleet import BudgetPool, BurstRule, Margin, SizedCluster, SizedPool
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot

A, B = PoolName("a"), PoolName("b")
POOLS = (SizedPool(A, 4, Role.PREFILL), SizedPool(B, 2, Role.DECODE))


class Scripted:
    """Wants what it is told; keeps the margins that it was asked with."""

    def __init__(self) -> None:
        self.wants: Mapping[PoolName, int] = {A: 1, B: 1}
        self.margins: list[float] = []

    def __call__(self, arrivals: Arrivals, now_s: float, margin: float) -> Mapping[PoolName, int]:
        self.margins.append(margin)
        return self.wants


def budgets(cluster: SizedCluster, now_s: float, gpus: int = 1000) -> dict[PoolName, int]:
    step = cluster.step(ClusterSnapshot(now_s, gpus, {}, {}))
    return {action.pool: action.gpus for action in step.actions if isinstance(action, SetGpuBudget)}


def test_more_at_once_and_fewer_only_after_the_hold() -> None:
    sizer = Scripted()
    cluster = SizedCluster(POOLS, sizer, Arrivals.none(), 0.0, every_s=60.0, hold_s=300.0)
    sizer.wants = {A: 2, B: 3}
    assert budgets(cluster, 0.0) == {A: 8, B: 6}
    sizer.wants = {A: 5, B: 1}
    assert budgets(cluster, 60.0) == {A: 20, B: 6}
    sizer.wants = {A: 1, B: 1}
    assert budgets(cluster, 300.0) == {A: 20, B: 6}
    assert budgets(cluster, 330.0) == {A: 20, B: 2}
    assert budgets(cluster, 361.0) == {A: 4, B: 2}


def test_what_is_known_beforehand_holds_until_it_is_past() -> None:
    sizer = Scripted()
    sizer.wants = {A: 7, B: 2}
    cluster = SizedCluster(POOLS, sizer, Arrivals.none(), first_s=600.0, hold_s=60.0)
    sizer.wants = {A: 1, B: 3}
    assert budgets(cluster, 0.0) == {A: 28, B: 6}
    assert budgets(cluster, 599.0) == {A: 28, B: 6}
    assert budgets(cluster, 700.0) == {A: 4, B: 6}


def test_an_unchanged_budget_is_not_sent_again() -> None:
    cluster = SizedCluster(POOLS, Scripted(), Arrivals.none(), 0.0)
    step = cluster.step(ClusterSnapshot(0.0, 100, {}, {A: 4, B: 2}))
    assert step.actions == ()
    assert step.wake_at_s == 60.0


@given(st.integers(1, 60), st.integers(1, 60), st.integers(6, 200))
def test_budgets_fit_the_cluster_and_leave_no_pool_without_a_replica(a: int, b: int, gpus: int) -> None:
    sizer = Scripted()
    sizer.wants = {A: a, B: b}
    given_gpus = budgets(SizedCluster(POOLS, sizer, Arrivals.none(), 0.0), 0.0, gpus)
    assert sum(given_gpus.values()) <= gpus
    assert 4 <= given_gpus[A] <= 4 * a
    assert 2 <= given_gpus[B] <= 2 * b
    if 4 * a + 2 * b <= gpus:
        assert given_gpus == {A: 4 * a, B: 2 * b}
    else:
        assert gpus - sum(given_gpus.values()) < 4


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_where_nodes_were_lost_budgets_still_fit_what_is_there(a: int, b: int, gpus: int) -> None:
    sizer = Scripted()
    sizer.wants = {A: a, B: b}
    assert sum(budgets(SizedCluster(POOLS, sizer, Arrivals.none(), 0.0), 0.0, gpus).values()) <= gpus


def view(name: str, state: ReplicaState = ReplicaState.READY) -> ReplicaView:
    return ReplicaView(ReplicaId(name), 4, 1980, state, role=Role.PREFILL)


def test_a_pool_runs_what_its_budget_holds_and_counts_no_replica_that_drains() -> None:
    pool = BudgetPool(POOLS[0])
    views = (view("x"), view("y", ReplicaState.STARTING), view("z", ReplicaState.DRAINING))
    [action] = pool.step(PoolSnapshot(0.0, A, 15, Load(), Load(), views)).actions
    assert isinstance(action, SetReplicas)
    assert (action.replicas, action.tp, action.role) == (3, 4, Role.PREFILL)
    assert pool.step(PoolSnapshot(0.0, A, 11, Load(), Load(), views)).actions == ()
    assert pool.plan() == "2 x TP4"


def test_the_margin_learns_from_late_first_tokens() -> None:
    margin = Margin(target=0.01, step=0.01, least=0.9, most=1.2, worst=10.0)
    assert margin.after(Answers(0, 0)) == 1.0
    assert margin.after(Answers(100, 0)) == 0.99
    assert margin.after(Answers(200, 1)) == 0.99
    assert np.isclose(margin.after(Answers(300, 51)), 1.08)
    for minute in range(400, 4000, 100):
        low = margin.after(Answers(minute, 51))
    assert low == 0.9
    for minute in range(4000, 10_000, 100):
        high = margin.after(Answers(minute, minute))
    assert high == 1.2


def test_burstier_arrivals_are_taken_for_faster_up_to_a_most() -> None:
    rule = BurstRule()
    factors = [rule.factor(idc) for idc in (0.0, 1.0, 10.0, 100.0, 1e9)]
    assert factors == sorted(factors)
    assert (factors[0], factors[-1]) == (rule.least, rule.most)
