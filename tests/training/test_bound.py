"""The lower bound is a bound: no real plan is cheaper, whatever the scales of times and energies."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.training.computation import Choice, computation_of
from control_plane.training.dag import Dag, dag_of_nodes, finish_times
from control_plane.training.frontier import TimeBudgetError, WalkProgress, stop_after, walk_frontier
from control_plane.training.rounding import prepare, rounding_problem

NEARLY_COINCIDING = {
    0: [Choice(2, 1.0, 10.0), Choice(1, 1.0 + 1e-12, 1.0)],
    1: [Choice(1, 1e4, 0.0)],
}

times_s = st.one_of(
    st.sampled_from([1e-9, 1.0, 1.0 + 1e-12, 1.0 + 2e-12, 1.0 + 1e-9, 2.0, 1e4, 1e6]),
    st.floats(1e-9, 1e6),
    st.integers(1, 5).map(lambda n: n / 3),
)
energies_j = st.one_of(st.integers(0, 12).map(float), st.floats(0, 1e6))


@st.composite
def small_dags(draw: st.DrawFn) -> Dag:
    count = draw(st.integers(1, 5))
    choice = st.builds(Choice, freq_mhz=st.integers(1, 9), time_s=times_s, energy_j=energies_j)
    power_w = draw(st.sampled_from([0.0, 5.0, 70.3]))
    nodes = {i: computation_of(draw(st.lists(choice, min_size=1, max_size=3)), power_w) for i in range(count)}
    pairs = [(i, j) for j in range(count) for i in range(j)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=8)) if pairs else []
    return dag_of_nodes(nodes, edges, power_w * count)


def every_plan(dag: Dag) -> list[tuple[float, float]]:
    """(finish time, effective energy) of every combination of real choices."""
    found = []
    for choices in product(*(dag.computation(op).choices for op in range(len(dag)))):
        end_s = float(finish_times(dag, np.array([c.time_s for c in choices])).max())
        found.append((end_s, sum(dag.computation(op).effective_j(c) for op, c in enumerate(choices))))
    return found


def assert_bounds_every_plan(dag: Dag) -> None:
    frontier = walk_frontier(dag)
    size_j = sum(max(c.energy_j + k.blocking_power_w * c.time_s for c in k.measured) for k in dag.computations)
    for end_s, effective_j in every_plan(dag):
        assert frontier.within(end_s).effective_j <= effective_j + 1e-12 * len(dag) * (1 + size_j)


def test_no_plan_beats_the_bound_where_two_times_nearly_coincide() -> None:
    dag = dag_of_nodes(NEARLY_COINCIDING, [(0, 1)])
    assert walk_frontier(dag).within(10001.0).energy_j <= 10.0
    assert_bounds_every_plan(dag)


@given(small_dags())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_plan_of_any_small_dag_beats_the_bound(dag: Dag) -> None:
    assert_bounds_every_plan(dag)


@pytest.mark.soak
@given(small_dags())
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_plan_of_five_thousand_small_dags_beats_the_bound(dag: Dag) -> None:
    assert_bounds_every_plan(dag)


def least_of_a_row_j(hulls: Sequence[Sequence[tuple[Fraction, Fraction]]], deadline: Fraction) -> Fraction:
    """Operations in a row, (time, energy) hulls fastest first: buy the cheapest seconds first, in exact fractions."""
    cost_j = sum((hull[-1][1] for hull in hulls), Fraction())
    to_save = sum((hull[-1][0] for hull in hulls), Fraction()) - deadline
    segments = sorted(
        ((fast[1] - slow[1]) / (slow[0] - fast[0]), slow[0] - fast[0])
        for hull in hulls
        for fast, slow in pairwise(hull)
    )
    for slope_w, span in segments:
        taken = min(span, max(Fraction(), to_save))
        cost_j += slope_w * taken
        to_save -= taken
    assert to_save <= 0
    return cost_j


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 4000)), min_size=1, max_size=5), max_size=6, min_size=1
    ),
    st.floats(0.001, 0.999),
    st.sampled_from([0, 8]),
)
@settings(max_examples=150, deadline=None)
def test_a_row_of_operations_costs_what_exact_fractions_say(
    rows: list[list[tuple[int, int]]], part: float, blocking_power_w: int
) -> None:
    nodes = {
        i: computation_of([Choice(1, t / 64, e / 4) for t, e in row], blocking_power_w) for i, row in enumerate(rows)
    }
    dag = dag_of_nodes(nodes, pairwise(nodes), blocking_power_w)
    frontier = walk_frontier(dag)
    computations = [dag.computation(op) for op in range(len(dag))]
    hulls = [
        [
            (
                Fraction(c.choices[i].time_s),
                Fraction(c.choices[i].energy_j) - blocking_power_w * Fraction(c.choices[i].time_s),
            )
            for i in c.hull
        ]
        for c in computations
    ]
    deadline_s = frontier.t_min_s + part * (frontier.t_star_s - frontier.t_min_s)
    exact_j = float(least_of_a_row_j(hulls, Fraction(deadline_s)))
    scale_j = 1 + float(sum(abs(cost) for hull in hulls for _, cost in hull))
    assert abs(frontier.within(deadline_s).effective_j - exact_j) <= 1e-9 * scale_j


@given(small_dags())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_slopes_rise_along_every_walk(dag: Dag) -> None:
    frontier = walk_frontier(dag)
    assert (np.diff(frontier.slope_w) > 0).all()
    assert (np.diff(frontier.time_s) <= 0).all()
    for computation in range(len(dag)):
        first, last = frontier.graph.piece_first[computation : computation + 2]
        assert (np.diff(frontier.graph.piece_until[first:last]) > 0).all()
        assert (np.diff(frontier.graph.piece_length[first:last]) < 0).all()


def test_an_iteration_that_can_take_no_time_is_prepared_and_planned() -> None:
    dag = dag_of_nodes({0: [Choice(2, 0.0, 5.0), Choice(1, 1.0, 1.0)], 1: [Choice(1, 0.0, 2.0)]}, [(0, 1)])
    library = prepare(rounding_problem(dag), walk_frontier(dag))
    assert library.within(0.0).energy_j == 7.0
    assert library.within(1.0).energy_j == 3.0


def layered(layers: int, width: int) -> Dag:
    rng = np.random.default_rng(1)
    nodes = {
        (layer, i): [Choice(3 - k, 1 + k + rng.random(), 9.0 - 3 * k - rng.random()) for k in range(3)]
        for layer in range(layers)
        for i in range(width)
    }
    edges = [
        ((layer, i), (layer + 1, j)) for layer in range(layers - 1) for i in range(width) for j in (i, (i + 1) % width)
    ]
    return dag_of_nodes(nodes, edges)


def test_a_walk_tells_how_far_it_is_and_finds_the_same_frontier() -> None:
    dag = layered(40, 7)
    heard: list[WalkProgress] = []
    watched = walk_frontier(dag, heard.append)
    alone = walk_frontier(dag)
    assert watched.breakpoints == alone.breakpoints > 64
    assert (watched.shift == alone.shift).all()
    assert (watched.flow == alone.flow).all()
    assert [p.breakpoints for p in heard] == sorted(p.breakpoints for p in heard)
    assert len(heard) > 1
    assert heard[-1].done_ratio == pytest.approx(1.0)
    middle_s = (alone.t_min_s + alone.t_star_s) / 2
    assert (watched.relaxed(middle_s).finish_s == alone.relaxed(middle_s).finish_s).all()


def test_a_walk_past_its_time_budget_ends_and_says_how_far_it_came() -> None:
    ticks = iter(range(100))
    with pytest.raises(TimeBudgetError, match=r"longer than 1\.5 s: after 2\.0 s it is known from T\*"):
        walk_frontier(layered(40, 7), stop_after(1.5, lambda: float(next(ticks))))
