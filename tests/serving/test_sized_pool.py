"""One pool of combined replicas: its governor, its size, and both together in virtual time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.actions import SetGpuBudget
from control_plane.domain import ClassLoad, InputClass, Load, PoolName, QueuedPrompt, QueueView, Role, Slo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.arrival_log import Arrivals
from control_plane.serving.clock_costs import clock_costs
from control_plane.serving.combined_governor import LATE_TARGET, CombinedGovernor
from control_plane.serving.hosted_policy import HostedPolicy
from control_plane.serving.policies.sized_pool import POOL, SizedPoolPolicy
from control_plane.serving.policy import Governor, Site
from control_plane.serving.snapshots import ClusterSnapshot
from control_plane.settings import Settings, parse_settings
from control_plane.simulation.serving_cluster import ClusterTimes, SimulatedCluster
from control_plane.simulation.sizing import fewest_replicas
from control_plane.simulation.traces import synthetic_trace
from control_plane.simulation.what_if import hosted_policy
from tests.simulation.test_sizing_and_scores import TABLES, simulate

PROFILE = RooflineProfile()
COSTS = clock_costs(PROFILE, 4)
SLO = Slo()

prompts = st.lists(st.tuples(st.floats(-1.0, 0.0), st.integers(1, 8000)), max_size=8)


def governor() -> CombinedGovernor:
    return CombinedGovernor(COSTS, 990, SLO, 0.05)


def queue(queued: list[tuple[float, int]], decoding: int = 0, context: int = 0) -> QueueView:
    waiting = [QueuedPrompt(at_s, tokens, tokens, 2.0 if tokens >= 1024 else 0.3) for at_s, tokens in queued]
    return QueueView(4, Role.COMBINED, 1980, tuple(waiting), decoding, context, 0, 500_000)


@given(prompts, st.integers(1, 4000), st.integers(0, 60))
def test_one_more_prompt_or_decoder_never_lowers_the_clock(
    queued: list[tuple[float, int]], tokens: int, decoding: int
) -> None:
    before = governor().look(queue(queued, decoding, 500 * decoding), 0.0)
    assert governor().look(queue([*queued, (0.0, tokens)], decoding, 500 * decoding), 0.0) >= before
    assert governor().look(queue(queued, decoding + 5, 500 * (decoding + 5)), 0.0) >= before


def test_an_empty_replica_takes_the_lowest_clock_and_a_hopeless_one_the_highest() -> None:
    assert governor().look(queue([]), 0.0) == 990
    assert governor().look(queue([(-5.0, 4000)]), 0.0) == COSTS[-1].freq_mhz


def test_room_is_left_for_as_many_as_came_in_the_last_minute() -> None:
    quiet, busy = governor(), governor()
    for at in range(400):
        now_s = at * 0.05
        busy.look(queue([(now_s, 2000)]), now_s)
    assert busy.look(queue([]), 20.0) > quiet.look(queue([]), 20.0) == 990
    assert busy.look(queue([]), 500.0) == 990, "minutes later nothing of it is remembered"


@given(st.lists(st.booleans(), min_size=1, max_size=60), prompts)
def test_first_tokens_in_time_never_raise_the_clock_and_late_ones_never_lower_it(
    lates: list[bool], queued: list[tuple[float, int]]
) -> None:
    told = governor()
    for late in lates:
        before = told.look(queue(queued), 0.0)
        told.first_token(0.4 if late else 0.1, 0.25)
        after = told.look(queue(queued), 0.0)
        assert after >= before if late else after <= before


def test_in_the_long_run_as_many_are_late_as_it_aims_at() -> None:
    """A world in which boldness alone decides: a first token is late in proportion to how low the clock was."""
    told, rng, late = governor(), np.random.default_rng(5), 0
    waiting = queue([(0.0, 900), (0.0, 900)], 20, 10_000)
    for _ in range(8_000):
        slow = (COSTS[-1].freq_mhz - told.look(waiting, 0.0)) / COSTS[-1].freq_mhz
        is_late = bool(rng.random() < 0.2 * slow)
        late += is_late
        told.first_token(1.0 if is_late else 0.1, 0.25)
    assert late / 8_000 == pytest.approx(LATE_TARGET, rel=0.25)


def test_the_simulator_tells_a_governor_of_its_own_replicas_first_tokens_and_of_no_others() -> None:
    trace = synthetic_trace("conv", 0.02, 6.0, seed=3)
    told: list[_Hearing] = []

    class Listened(SizedPoolPolicy):
        def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
            told.append(_Hearing())
            return told[-1]

    heard = {}
    for engine in ("stepped", "compiled"):
        told.clear()
        fleet = HostedPolicy(Listened(site(8)), Settings().forecast, 8)
        outcome = SimulatedCluster(PROFILE, 8, fleet, idle_gpus=0, engine=engine).run(trace)
        assert sorted(ttft_s for one in told for ttft_s, _ in one.first_tokens) == pytest.approx(
            sorted(outcome.ttft_s.tolist())
        )
        assert {limit_s for one in told for _, limit_s in one.first_tokens} <= {
            SLO.ttft_short_s,
            SLO.ttft_medium_s,
            SLO.ttft_long_s,
        }
        heard[engine] = [one.first_tokens for one in told]
    assert heard["stepped"] == heard["compiled"]


class _Hearing:
    def __init__(self) -> None:
        self.first_tokens: list[tuple[float, float]] = []

    def look(self, queue: QueueView, now_s: float) -> int:
        del queue, now_s
        return COSTS[-1].freq_mhz

    def first_token(self, ttft_s: float, ttft_limit_s: float) -> None:
        self.first_tokens.append((ttft_s, ttft_limit_s))


def site(gpus: int) -> Site:
    return Site(Settings(), PROFILE, gpus, 0.0, Load())


def arrivals(rps: float, tokens: float, seed: int = 1) -> Arrivals:
    at_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rps, round(rps * 600)))
    return Arrivals(at_s, np.full(len(at_s), tokens), np.full(len(at_s), 100.0))


def test_more_load_never_needs_fewer_replicas_and_one_node_takes_the_smallest_ones() -> None:
    policy = SizedPoolPolicy(site(256))
    sizes = [policy.sizes(arrivals(rps, 1000.0), 600.0, 1.0)[POOL] for rps in (1.0, 5.0, 20.0, 80.0)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0] >= 1
    assert policy.sizes(Arrivals.none(), 0.0, 1.0) == {POOL: 1}
    one_node = SizedPoolPolicy(site(8))
    assert "TP2" not in policy.pool(POOL).plan()
    assert one_node.sizes(arrivals(5.0, 1000.0), 600.0, 1.0)[POOL] >= sizes[1]


def test_a_first_load_is_planned_for_before_anything_came_on_any_clock() -> None:
    load = Load({InputClass.MEDIUM: ClassLoad(20.0, 900.0, 100.0), InputClass.LONG: ClassLoad(20.0, 2000.0, 100.0)})
    policy = SizedPoolPolicy(Site(Settings(), PROFILE, 256, 0.0, load))
    expected = Arrivals.steady(load, 600.0)
    assert len(expected) == 24_000
    assert (np.diff(expected.at_s) >= 0).all()
    assert expected.input_tokens.mean() == pytest.approx(1450.0)
    cluster, asked = policy.cluster(), []
    for now_s in (50_000.0, 50_300.0, 52_000.0):
        step = cluster.step(ClusterSnapshot(now_s, 256, {}, {}))
        asked.append(next(action.gpus for action in step.actions if isinstance(action, SetGpuBudget)))
    assert asked[0] == asked[1] > 8
    assert asked[2] == 4, "nothing came"


def test_it_holds_the_slo_on_less_energy_than_the_sized_static_pool() -> None:
    trace = synthetic_trace("conv", 0.25, 6.0, seed=3)
    settings = parse_settings({"phases": "together"})
    fleet = hosted_policy("sized-pool", trace, settings, PROFILE, 128, 0.0)
    cluster = SimulatedCluster(PROFILE, 128, fleet, times=ClusterTimes.for_startup(60.0), idle_gpus=0)
    outcome = cluster.run(trace, trace.duration_s + 60.0)
    static = fewest_replicas(trace, TABLES, SLO, simulate)
    assert outcome.lost == 0
    assert outcome.slo_attainment(SLO) >= 0.99
    assert outcome.energy_j < static.outcome.energy_j
