"""Sizing by replay: the backlog against a queue stepped by hand, the fewest servers against one fewer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.serving.fluid_sizing import Demand, backlog, dispersion, fewest_servers, peak_rate, waits_s

arrivals = st.lists(
    st.tuples(st.floats(0.0, 20.0), st.floats(1.0, 5000.0)), min_size=1, max_size=60
)  # (gap in s, work)


def columns(items: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    gaps, work = np.array(items).T
    return np.cumsum(gaps), work


def queued_by_hand(at_s: np.ndarray, work: np.ndarray, rate: float) -> list[float]:
    left, before_s, found = 0.0, float(at_s[0]), []
    for now_s, tokens in zip(at_s, work, strict=True):
        left = max(0.0, left - rate * (now_s - before_s))
        found.append(left)
        left, before_s = left + tokens, now_s
    return found


@given(arrivals, st.floats(10.0, 5000.0))
def test_the_backlog_is_that_of_a_queue_stepped_by_hand(items: list[tuple[float, float]], rate: float) -> None:
    at_s, work = columns(items)
    assert backlog(at_s, work, rate) == pytest.approx(queued_by_hand(at_s, work, rate), abs=1e-6 * work.sum() + 1e-6)


def late(demand: Demand, rate: float) -> int:
    waits = np.array(queued_by_hand(demand.at_s, demand.work, rate)) / rate
    return int((waits > np.asarray(demand.wait_limit_s) + 1e-9).sum())


@given(arrivals, st.floats(100.0, 5000.0), st.floats(0.01, 5.0), st.sampled_from([0.0, 0.1, 0.5]))
def test_one_server_fewer_would_not_do(
    items: list[tuple[float, float]], rate: float, limit_s: float, late_share: float
) -> None:
    at_s, work = columns(items)
    demand = Demand(at_s, work, limit_s, late_share, max_use=0.9)
    servers = fewest_servers(demand, rate)
    span_s = max(float(at_s[-1] - at_s[0]), 1.0)
    allowed = late_share * len(work)
    assert late(demand, servers * rate) <= allowed
    assert work.sum() / span_s <= servers * rate * 0.9 * (1 + 1e-6)
    if servers > 1:
        overloaded = work.sum() / span_s > (servers - 1) * rate * 0.9 * (1 - 1e-6)
        waits = np.array(queued_by_hand(at_s, work, (servers - 1) * rate)) / ((servers - 1) * rate)
        assert overloaded or (waits > limit_s - 1e-9).sum() > allowed


def test_nothing_that_arrives_needs_the_least_fleet() -> None:
    empty = np.empty(0)
    assert fewest_servers(Demand(empty, empty, 1.0, 0.01, 0.7), 100.0, at_least=2) == 2


def test_what_no_fleet_can_serve_in_time_ends_at_the_most_that_is_allowed() -> None:
    at_s, work = np.zeros(3), np.full(3, 100.0)
    assert fewest_servers(Demand(at_s, work, -1.0, 0.0, 0.9), 100.0, at_most=50) == 50


def test_independent_arrivals_have_a_dispersion_of_one_and_bursts_more() -> None:
    random = np.random.default_rng(1)
    at_s = np.sort(random.uniform(0, 6000, 20_000))
    work = random.exponential(500, 20_000)
    assert dispersion(at_s, work) == pytest.approx(1.0, abs=0.25)
    together = np.sort(np.concatenate([at_s[::2], np.repeat(np.arange(50.0) * 120, 200)]))
    assert dispersion(together, work) > 20


def test_a_few_arrivals_say_nothing_of_bursts() -> None:
    assert dispersion(np.array([0.0, 1.0]), np.array([5.0, 5.0])) == 1.0
    assert dispersion(np.empty(0), np.empty(0)) == 1.0


def test_the_peak_is_the_busiest_bin() -> None:
    at_s, work = np.array([0.0, 29.0, 31.0, 32.0]), np.array([300.0, 300.0, 900.0, 600.0])
    assert peak_rate(at_s, work, 30.0) == 50.0
    assert peak_rate(np.empty(0), np.empty(0), 30.0) == 0.0


def test_two_requests_far_apart_are_no_burst() -> None:
    assert dispersion(np.array([0.0, 600.0]), np.array([100.0, 100.0])) == 1.0


requests = st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.0, 3.0)), min_size=1, max_size=40)


@given(requests, st.integers(1, 5))
def test_waits_are_those_of_servers_stepped_through_and_more_servers_never_wait_longer(
    given_requests: list[tuple[float, float]], servers: int
) -> None:
    at_s = np.cumsum([gap for gap, _ in given_requests])
    service_s = np.array([takes for _, takes in given_requests])
    ends, waits = [-1.0] * servers, []
    for now_s, takes_s in zip(at_s, service_s, strict=True):
        first = ends.index(min(ends))
        begins_s = max(now_s, ends[first])
        ends[first] = begins_s + takes_s
        waits.append(begins_s - now_s)
    assert waits_s(at_s, service_s, servers) == pytest.approx(waits)
    assert (waits_s(at_s, service_s, servers + 1) <= waits_s(at_s, service_s, servers) + 1e-9).all()
    if servers == 1:
        assert waits == pytest.approx(backlog(at_s, service_s, 1.0), abs=1e-9)
