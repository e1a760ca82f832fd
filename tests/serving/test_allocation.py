"""The allocation against HiGHS on the whole problem, and its laws."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.domain import RequestType, Shape, Slo
from control_plane.hardware.profiles import load_profile
from control_plane.serving.allocation import Allocation, AllocationProblem, Group, PowerCurve
from control_plane.serving.allocation_curves import PoolDemand, problem_of
from control_plane.serving.allocation_milp import all_pieces, milp_plan
from control_plane.serving.allocation_solver import allocate

WITHIN = 1e-3


@st.composite
def curves(draw: st.DrawFn, tp: int, freq_mhz: int) -> PowerCurve:
    most = tp * draw(st.floats(0.2, 0.8))
    knots = draw(st.integers(1, 3))
    watts = [100.0 * tp]
    for _ in range(knots):
        watts.append(watts[-1] + tp * draw(st.floats(1.0, 300.0)))
    return PowerCurve(Shape(tp, freq_mhz), [most * at / knots for at in range(knots + 1)], watts)


@st.composite
def problems(draw: st.DrawFn) -> AllocationProblem:
    loads = draw(st.lists(st.floats(0.2, 6.0), min_size=1, max_size=3))
    groups = []
    for first in range(len(loads)):
        for last in range(first, len(loads)):
            if first == last or draw(st.booleans()):
                shapes = [(tp, freq) for tp in (2, 4, 8) for freq in (1000, 1980)]
                found = [draw(curves(tp, freq)) for tp, freq in shapes]
                groups.append(Group(first, last, sum(loads[first : last + 1]), found))
    names = [f"pool {at}" for at in range(len(loads))]
    return AllocationProblem(names, groups, draw(st.integers(4, 48)), draw(st.sampled_from((0.0, 80.0))))


def check_served(problem: AllocationProblem, found: Allocation) -> None:
    """Every pool is served by one group, in full, by instances that can."""
    groups = {(placed.group.first, placed.group.last): placed.group for placed in found.placements}
    assert sorted(pool for first, last in groups for pool in range(first, last + 1)) == list(range(len(problem.pools)))
    for group in groups.values():
        mine = [placed for placed in found.placements if placed.group == group]
        assert sum(placed.instances * placed.load_each for placed in mine) == pytest.approx(group.load, rel=1e-6)
        most = {curve.shape: curve.most for curve in group.curves}
        assert all(placed.load_each <= most[placed.shape] * (1 + 1e-9) for placed in mine)
    assert sum(placed.gpus for placed in found.placements) == found.gpus_used <= problem.gpus
    watts = sum(placed.instances * placed.watts_each for placed in found.placements)
    idle_w = problem.idle_gpu_w * (problem.gpus - found.gpus_used)
    assert found.power_w == pytest.approx(watts + idle_w, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_it_equals_the_milp_wherever_there_is_a_plan(problem: AllocationProblem) -> None:
    found = allocate(problem)
    peer = milp_plan(problem, all_pieces(problem), limit_s=60.0)
    assert found.feasible == (peer is not None)
    if peer is None:
        assert all(short.gpus_short is not None and short.gpus_short > 0 for short in found.shortfalls)
        return
    check_served(problem, found)
    least_w = peer.watts + problem.idle_gpu_w * problem.gpus
    assert least_w * (1 - 1e-6) <= found.power_w <= least_w * (1 + WITHIN)
    assert found.lower_bound_w <= least_w * (1 + 1e-6)


def straight(tp: int, most: float, watts: float, freq_mhz: int = 1980) -> PowerCurve:
    return PowerCurve(Shape(tp, freq_mhz), (0.0, most), (100.0 * tp, watts))


def test_neighbours_are_merged_where_that_saves_an_instance() -> None:
    shape = (straight(8, 10.0, 3000.0),)
    alone = [Group(0, 0, 2.0, shape), Group(1, 1, 3.0, shape)]
    apart = allocate(AllocationProblem(("small", "large"), alone, 16))
    merged = allocate(AllocationProblem(("small", "large"), [*alone, Group(0, 1, 5.0, shape)], 16))
    assert (apart.gpus_used, merged.gpus_used) == (16, 8)
    assert merged.power_w == pytest.approx(apart.power_w - 800.0)


def test_idle_power_that_is_billed_changes_the_best_plan() -> None:
    group = [Group(0, 0, 4.0, (straight(8, 4.0, 2000.0), straight(4, 2.0, 1050.0, 1200)))]
    assert allocate(AllocationProblem(("all",), group, 16, 0.0)).placements[0].shape.tp == 8
    cheaper = [Group(0, 0, 4.0, (straight(8, 4.0, 2000.0), PowerCurve(Shape(2, 1980), (0.0, 4.0), (200.0, 1700.0))))]
    assert allocate(AllocationProblem(("all",), cheaper, 16, 0.0)).placements[0].shape.tp == 2
    assert allocate(AllocationProblem(("all",), cheaper, 16, 90.0)).placements[0].shape.tp == 8


def test_too_few_gpus_are_said_and_the_largest_share_is_served() -> None:
    group = [Group(0, 0, 10.0, (straight(8, 2.0, 3000.0),))]
    found = allocate(AllocationProblem(("all",), group, 16))
    assert not found.feasible
    assert found.shortfalls[0].gpus_short == 40 - 16
    assert found.shortfalls[0].served_ratio == pytest.approx(0.4, abs=0.01)
    assert found.gpus_used == 16


def test_a_pool_that_nothing_serves_is_named_and_the_others_are_served() -> None:
    groups = [Group(0, 0, 1.0, ()), Group(1, 1, 1.0, (straight(4, 2.0, 1500.0),)), Group(0, 1, 2.0, ())]
    found = allocate(AllocationProblem(("never", "served"), groups, 8))
    assert [(short.pool, short.gpus_short) for short in found.shortfalls] == [("never", None)]
    assert [placed.group.first for placed in found.placements] == [1]


def test_no_gpu_at_all() -> None:
    found = allocate(AllocationProblem(("all",), [Group(0, 0, 1.0, (straight(2, 2.0, 900.0),))], 0))
    assert not found.feasible
    assert not found.placements
    assert found.shortfalls[0].gpus_short == 2


@pytest.mark.parametrize(("loads", "watts"), [((0.0, 1.0), (100.0, 90.0)), ((0.5, 1.0), (90.0, 100.0))])
def test_a_curve_that_is_none_is_refused(loads: tuple[float, ...], watts: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="curve of TP2@1980"):
        PowerCurve(Shape(2, 1980), loads, watts)


PROFILE = load_profile("llama2-70b-h100")
LIGHT = [
    PoolDemand(RequestType.parse("SS"), 4.0, 128, 40),
    PoolDemand(RequestType.parse("MM"), 6.0, 600, 200),
    PoolDemand(RequestType.parse("LL"), 3.0, 2200, 430),
]


def scaled(factor: float) -> list[PoolDemand]:
    return [PoolDemand(d.type, factor * d.rps, d.input_tokens, d.output_tokens) for d in LIGHT]


def test_instances_hold_the_slo_by_the_closed_forms() -> None:
    problem = problem_of(LIGHT, PROFILE, 64)
    found = allocate(problem)
    check_served(problem, found)
    merged = {"SS": 0, "MM": 1, "LL": 2}
    for placed in found.placements:
        mine = [d for d in LIGHT if placed.group.first <= merged[str(d.type)] <= placed.group.last]
        mix = mine[0].load
        for demand in mine[1:]:
            mix = mix + demand.load
        each = mix.scaled(placed.load_each / mix.rps)
        assert PROFILE.meets_slo(placed.shape, each)
        assert PROFILE.power_w(placed.shape, each) == pytest.approx(placed.watts_each, rel=0.03)


def test_more_gpus_never_cost_more_and_merging_never_does() -> None:
    tight, roomy = (allocate(problem_of(scaled(4), PROFILE, gpus)) for gpus in (64, 128))
    assert roomy.power_w <= tight.power_w * (1 + WITHIN)
    apart = allocate(problem_of(scaled(4), PROFILE, 128, merge=False))
    assert roomy.power_w <= apart.power_w * (1 + WITHIN)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_plan_for_100_000_gpus_is_within_a_thousandth_of_its_bound(share: float) -> None:
    found = allocate(problem_of(scaled(8000 * share), PROFILE, 100_000))
    assert found.feasible
    assert found.gap_ratio <= WITHIN


def test_a_pools_own_limits_hold() -> None:
    loose = allocate(problem_of(scaled(4), PROFILE, 256))
    strict = [PoolDemand(d.type, d.rps, d.input_tokens, d.output_tokens, Slo(0.12, 0.2, 1.0, 0.05)) for d in scaled(4)]
    assert allocate(problem_of(strict, PROFILE, 256)).power_w > loose.power_w * 1.05
