from hypothesis import given
from hypothesis import strategies as st

from control_plane.actions import SetReplicas
from control_plane.domain import PoolName, ReplicaId, ReplicaState, ReplicaView, Shape
from control_plane.serving.pool_policy import PoolPlan
from control_plane.serving.reconcile import reconcile

POOL = PoolName("long")


def view(name: str, tp: int, state: ReplicaState = ReplicaState.READY) -> ReplicaView:
    return ReplicaView(ReplicaId(name), tp, 1980, state)


def plan(tp: int, replicas: int) -> PoolPlan:
    return PoolPlan(Shape(tp, 1200), replicas, 1000.0)


def counts(actions: tuple[SetReplicas, ...]) -> list[tuple[int, int]]:
    return [(action.tp, action.replicas) for action in actions]


def test_nothing_to_do_where_the_plan_runs() -> None:
    assert reconcile(POOL, plan(4, 2), (view("a", 4), view("b", 4)), 32, "") == ()


def test_a_draining_replica_does_not_count() -> None:
    seen = (view("a", 4), view("b", 4, ReplicaState.DRAINING))
    assert reconcile(POOL, plan(4, 1), seen, 32, "") == ()


def test_old_shape_serves_until_the_new_one_is_ready() -> None:
    old = view("old", 4)
    assert counts(reconcile(POOL, plan(8, 1), (old,), 32, "")) == [(8, 1)]
    starting = (old, view("new", 8, ReplicaState.STARTING))
    assert counts(reconcile(POOL, plan(8, 1), starting, 32, "")) == []
    ready = (old, view("new", 8))
    assert counts(reconcile(POOL, plan(8, 1), ready, 32, "")) == [(4, 0)]


def test_without_room_for_both_the_old_shape_gives_way_step_by_step() -> None:
    seen = (view("a", 4), view("b", 4))
    assert counts(reconcile(POOL, plan(8, 1), seen, 8, "")) == [(4, 1)]


def test_the_last_replica_is_not_given_up_for_one_that_does_not_run() -> None:
    assert counts(reconcile(POOL, plan(8, 1), (view("a", 4),), 8, "")) == []


replicas = st.lists(
    st.tuples(st.sampled_from([2, 4, 8]), st.sampled_from([ReplicaState.READY, ReplicaState.STARTING])), max_size=5
)


@given(replicas, st.sampled_from([2, 4, 8]), st.integers(1, 4), st.integers(8, 48))
def test_it_never_asks_for_more_gpus_than_the_budget(
    running: list[tuple[int, ReplicaState]], tp: int, wanted: int, budget: int
) -> None:
    seen = tuple(view(str(number), size, state) for number, (size, state) in enumerate(running))
    target = plan(tp, min(wanted, max(1, budget // tp)))
    after = {size: sum(v.tp == size for v in seen) for size in (2, 4, 8)}
    before_gpus = sum(size * count for size, count in after.items())
    for action in reconcile(POOL, target, seen, budget, ""):
        after[action.tp] = action.replicas
    assert sum(size * count for size, count in after.items()) <= max(budget, before_gpus)


@given(replicas, st.sampled_from([2, 4, 8]), st.integers(1, 3))
def test_following_it_ends_at_the_plan(running: list[tuple[int, ReplicaState]], tp: int, wanted: int) -> None:
    """Every new replica becomes ready one round later; some budget is left for the overlap."""
    state = {size: sum(s == size for s, _ in running) for size in (2, 4, 8)}
    budget = sum(size * count for size, count in state.items()) + tp * wanted
    for _ in range(12):
        seen = tuple(view(f"{size}-{n}", size) for size, count in state.items() for n in range(count))
        actions = reconcile(POOL, plan(tp, wanted), seen, budget, "")
        if not actions:
            break
        for action in actions:
            state[action.tp] = action.replicas
    assert {size: count for size, count in state.items() if count} == {tp: wanted}
