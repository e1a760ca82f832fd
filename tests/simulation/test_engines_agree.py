"""The compiled event loop equals the oracle: every completion time, routing choice, clock and governor's look."""

import gc
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

import numpy as np
import pytest

from control_plane.actions import Action, SetFrequency, SetGovernor, SetReplicas, Step
from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import InputClass, PoolName, QueueView, ReplicaId, ReplicaState, ReplicaView, Role, Slo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.replica_model import ReplicaLimits
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.clock_costs import clock_costs
from control_plane.serving.governors import DecodeGovernor, LimitShares, PrefillGovernor
from control_plane.serving.phase_router import PhaseRouter
from control_plane.serving.policy import Governor, HandOver, Needs, RoutedRequest
from control_plane.serving.routing import Candidate
from control_plane.serving.rules import PhaseRule, PhaseRules
from control_plane.settings import Settings
from control_plane.simulation import compiled_loop, serving_cluster
from control_plane.simulation.compiled_loop import Compiled
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.serving_cluster import ClusterTimes, Engine, NodeFailure, SimulatedCluster
from control_plane.simulation.trace import Trace
from control_plane.simulation.traces import read_azure, synthetic_conversation, window
from control_plane.simulation.what_if import hosted_policy

PROFILE = RooflineProfile()
COSTS = {tp: clock_costs(PROFILE, tp) for tp in PROFILE.tps}


def assert_same(fast: Simulated, slow: Simulated) -> None:
    for column in ("started_ps", "first_token_ps", "finished_ps", "replica"):
        assert getattr(fast.columns, column) == getattr(slow.columns, column), column
    assert fast.decisions == slow.decisions
    assert fast.replicas == slow.replicas
    assert (fast.lost, fast.ends_s, fast.instances_peak) == (slow.lost, slow.ends_s, slow.instances_peak)
    assert fast.energy_j == pytest.approx(slow.energy_j, rel=1e-11)
    np.testing.assert_allclose(fast.columns.energy_wps, slow.columns.energy_wps, rtol=1e-9)
    np.testing.assert_allclose([s.power_w for s in fast.samples], [s.power_w for s in slow.samples], rtol=1e-7)
    assert [(s.gpus, s.in_flight) for s in fast.samples] == [(s.gpus, s.in_flight) for s in slow.samples]


class ErraticFleet:
    """Routes, scales, changes clocks and hands over at random, but by seed: what any policy might do."""

    def __init__(
        self, random: Random, replicas: int, tps: Sequence[int], splits_phases: bool = False, governs: bool = False
    ) -> None:
        self._random, self._replicas, self._tps = random, replicas, tps
        self._roles = (
            {PoolName("p"): Role.PREFILL, PoolName("d"): Role.DECODE}
            if splits_phases
            else {PoolName("p"): Role.COMBINED}
        )
        self.needs = Needs(kv_use=True, queued_tokens=True, power=True, latencies=True)
        self.splits_phases, self._governs = splits_phases, governs
        self.log: list[tuple[str, Hashable, Hashable]] = []

    def first_replicas(self) -> Sequence[SetReplicas]:
        return [SetReplicas(pool, self._tps[0], self._replicas, "", role) for pool, role in self._roles.items()]

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return ErraticGovernor(self.log) if self._governs and tp != 4 else None

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        if not candidates or self._random.random() < 0.02:
            return None
        chosen = self._random.choice(candidates).replica_id
        self.log.append(("decode", request_id, chosen))
        return chosen

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        if not candidates or self._random.random() < 0.02:
            return None
        chosen = self._random.choice(candidates)
        self.log.append(("route", request_id, chosen.replica_id))
        return chosen.pool, chosen.replica_id

    def first_token(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, ttft_s: float) -> None:
        self.log.append(("first", request_id, replica_id))

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self.log.append(("ended", request_id, replica_id))

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self.log.append(("dropped", request_id, replica_id))

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        actions: list[Action] = []
        for _, view in replicas:
            power_w = None if view.power_w is None else round(view.power_w, 3)
            self.log.append(("seen", replace(view, power_w=power_w), view.replica_id))
            freq_mhz = self._random.choice(PROFILE.gpu.freqs_mhz[::9])
            if view.state is ReplicaState.READY and self._random.random() < 0.7:
                if self._governs and view.tp != 4 and self._random.random() < 0.7:
                    ceiling_mhz = freq_mhz + self._random.randint(0, 600)
                    actions.append(SetGovernor(view.replica_id, freq_mhz, ceiling_mhz, ""))
                else:
                    actions.append(SetFrequency(view.replica_id, freq_mhz, ""))
        if self._random.random() < 0.2:
            (pool, role), tp = self._random.choice(tuple(self._roles.items())), self._random.choice(self._tps)
            at_least = 1 if tp == self._tps[0] else 0
            wanted = self._random.randint(at_least, self._replicas + 1)
            first = tuple(view.replica_id for _, view in replicas if self._random.random() < 0.3)
            actions.append(SetReplicas(pool, tp, wanted, "", role, first))
        return Step(tuple(actions), now_s + self._random.choice([0.003, 0.2, 0.4, 1.0]))


class RuledFleet(ErraticFleet):
    """Routes and governs by the repository's rules, with knobs at random; scales and bounds clocks erratically. The
    compiled loop applies the rules by itself, the stepped one calls the objects."""

    def __init__(self, random: Random, replicas: int, tps: Sequence[int], times: ClusterTimes, kv_tokens: int) -> None:
        super().__init__(random, replicas, tps, splits_phases=True, governs=True)
        handicaps = {(PoolName("p"), name): random.choice([0, 0, 50, 5000]) for name in InputClass}
        rules = PhaseRules(
            handicaps,
            hopeless_ratio=random.choice([0.1, 0.85]),
            most_overflow_s=random.choice([0.05, 20.0]),
            most_decoding=random.choice([1, 4, 200]),
            grown_tokens=random.choice([0.0, 33.3, 400.0]),
            most_link_wait_s=random.choice([0.0, 0.3]),
        )
        hand_over = HandOver(times.kv_bytes_per_token, times.kv_link_bytes_per_s)
        self.router = PhaseRouter(rules, hand_over, Slo(), {PoolName("d"): kv_tokens})
        self.by_rule = 0

    @property
    def routing_rule(self) -> PhaseRule | None:
        return self.router.rule

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        if tp == 4:
            return ErraticGovernor(self.log)
        if role is Role.DECODE:
            return DecodeGovernor(COSTS[tp], 900, 0.5, full_at=2, most=9)
        return PrefillGovernor(COSTS[tp], 600, LimitShares(0.5, 0.7), 0.05)

    def admit(self, now_s: float, input_tokens: int) -> None:
        self.by_rule += 1
        self.log.append(("admit", now_s, input_tokens))

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        self.log.append(("admit", now_s, input_tokens))
        chosen = self.router.route(now_s, RoutedRequest(request_id, input_tokens, 4096), candidates)
        return None if chosen is None else (chosen.pool, chosen.replica_id)

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        return self.router.route_decode(now_s, request_id, input_tokens, candidates)

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        super().ended(request_id, replica_id, input_tokens, output_tokens)
        self.router.ended(request_id, replica_id, input_tokens, output_tokens)

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        super().dropped(request_id, replica_id)
        self.router.dropped(request_id, replica_id)


class ErraticGovernor:
    """Wants a clock that follows from all that it sees, and notes what it saw."""

    def __init__(self, log: list[tuple[str, Hashable, Hashable]]) -> None:
        self._log = log

    def look(self, queue: QueueView, now_s: float) -> int:
        self._log.append(("look", now_s, queue))
        left = sum(prompt.left_tokens for prompt in queue.queued)
        return 300 + (7 * left + 31 * queue.decoding + queue.context_tokens + 3 * queue.kv_used_tokens) % 1700


def fuzzed(seed: int, engine: Engine, ruled: bool = False) -> tuple[Simulated, ErraticFleet]:
    random = Random(seed)
    count = random.randint(1, 60)
    most_input, most_output = random.choice([(20, 6), (300, 60), (3000, 120)])
    grid_ps = random.choice([1, 10**9, 10**11, 3 * 10**11])
    arrivals = sorted(random.randint(0, 5 * 10**12) // grid_ps * grid_ps for _ in range(count))
    trace = Trace(
        np.array(arrivals, np.int64),
        np.array([random.randint(1, most_input) for _ in arrivals], np.int32),
        np.array([random.randint(1, most_output) for _ in arrivals], np.int32),
    )
    room = int((most_input + most_output) * random.choice([1, 1.3, 2.5, 50]))
    limits = ReplicaLimits(room, random.choice([1, 2, 5, 256]), random.choice([16, 128, 2048]))
    tps = random.sample([2, 4, 8], random.randint(1, 3))
    tables = {tp: ShapeTables(PROFILE.times(tp), limits, PROFILE.gpu, tp) for tp in PROFILE.tps}
    failures = [
        NodeFailure(random.uniform(0, 6), random.randint(0, 2), random.uniform(0.01, 3))
        for _ in range(random.choice([0, 0, 1, 3]))
    ]
    splits_phases, governs = random.random() < 0.4, random.random() < 0.4
    replicas, kv_latency_s = random.randint(1, 3), random.choice([0.0, 0.002, 0.1])
    times = ClusterTimes(random.choice([0.0, 0.01, 2.0]), 0.005, kv_latency_s=kv_latency_s)
    fleet = ErraticFleet(Random(seed + 1), replicas, tps, splits_phases, governs)
    if ruled:
        streamed, link = random.random() < 0.5, random.choice([1e9, 50e9])
        times = replace(times, kv_streamed=streamed, kv_link_bytes_per_s=link)
        fleet = RuledFleet(Random(seed + 1), replicas, tps, times, room)
    gpus = random.choice([None, 48])
    cluster = SimulatedCluster(
        PROFILE, gpus, fleet, sample_s=0.7, times=times, failures=failures, engine=engine, tables=tables
    )
    return cluster.run(trace), fleet


def told(fleet: ErraticFleet) -> list[tuple[str, Hashable, Hashable]]:
    """Where a rule routes, the fleet hears of requests later, but in the same order."""
    return [entry for entry in fleet.log if entry[0] != "look"]


def looks(fleet: ErraticFleet) -> list[tuple[str, Hashable, Hashable]]:
    return [entry for entry in fleet.log if entry[0] == "look"]


def assert_seed_agrees(seed: int, ruled: bool = False) -> None:
    fast, fast_fleet = fuzzed(seed, "compiled", ruled)
    slow, slow_fleet = fuzzed(seed, "stepped", ruled)
    assert told(fast_fleet) == told(slow_fleet), f"seed {seed}"
    assert looks(fast_fleet) == looks(slow_fleet), f"seed {seed}"
    assert_same(fast, slow)
    np.testing.assert_array_equal(fast.gaps.counts(), slow.gaps.counts())


@pytest.mark.parametrize("seed", range(0, 500, 8))
def test_fuzzed_cases_with_failures_phases_apart_and_governors_agree(seed: int) -> None:
    assert_seed_agrees(seed)


@pytest.mark.parametrize("seed", range(0, 500, 8))
def test_rules_in_machine_code_answer_as_routers_and_governors_do(seed: int) -> None:
    assert_seed_agrees(seed, ruled=True)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(80))
def test_2000_fuzzed_cases_by_rules_agree(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        assert_seed_agrees(seed, ruled=True)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(20))
def test_500_fuzzed_cases_with_failures_phases_apart_and_governors_agree(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        assert_seed_agrees(seed)


def test_the_fuzzed_cases_meet_what_they_are_for() -> None:
    """Requests are handed over, dropped and looked at; replicas preempt and drain; nobody is asked for nothing."""
    words: set[str] = set()
    for seed in range(0, 120, 4):
        words |= {word for word, _, _ in fuzzed(seed, "compiled")[1].log}
    assert words == {"route", "first", "ended", "seen", "dropped", "decode", "look"}


@pytest.mark.parametrize("seed", range(25))
def test_the_kernel_routes_as_the_single_pool_does(seed: int) -> None:
    random = Random(seed)
    requests, replicas = random.randint(1, 400), random.randint(1, 30)
    grid_ps = random.choice([1, 10**9, 10**11])
    arrivals = sorted(random.randint(0, 2 * 10**12) // grid_ps * grid_ps for _ in range(requests))
    inputs = [random.choice([10, random.randint(1, 3000)]) for _ in arrivals]
    outputs = [random.choice([1, 5, random.randint(1, 200)]) for _ in arrivals]
    trace = Trace(np.array(arrivals, np.int64), np.array(inputs, np.int32), np.array(outputs, np.int32))
    limits = ReplicaLimits(random.choice([2000, 4000, 10**6]), random.choice([2, 256]), 2048)
    tables = {8: ShapeTables(PROFILE.times(8), limits, PROFILE.gpu, 8)}

    failures = [NodeFailure(random.uniform(0, 2), random.randint(0, 5), 0.5) for _ in range(random.choice([0, 2]))]

    def run(engine: Engine) -> Simulated:
        fleet = SinglePool(replicas)
        cluster = SimulatedCluster(PROFILE, None, fleet, failures=failures, engine=engine, tables=tables)
        return cluster.run(trace, 30.0)

    assert_same(run("compiled"), run("stepped"))


@pytest.mark.parametrize(
    ("field", "value"), [("kv_link_bytes_per_s", 0.0), ("kv_latency_s", -1.0), ("cold_start_s", float("nan"))]
)
def test_times_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        ClusterTimes(**{field: value})


def test_a_long_trace_is_compiled_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    class Noted(Compiled):
        def play(self, until_ps: int, kv_too: bool) -> None:
            taken.append(until_ps)
            super().play(until_ps, kv_too)

    monkeypatch.setattr(compiled_loop, "Compiled", Noted)
    trace = Trace.of(synthetic_conversation(2, seed=3))
    short = SimulatedCluster(PROFILE, None, SinglePool(2)).run(trace)
    assert not taken
    monkeypatch.setattr(serving_cluster, "COMPILED_FROM_TOKENS", int(trace.output_tokens.sum()))
    assert_same(SimulatedCluster(PROFILE, None, SinglePool(2)).run(trace), short)
    assert taken


def test_policies_are_billed_for_their_own_time() -> None:
    ticks = count()
    cluster = SimulatedCluster(PROFILE, None, SinglePool(2), policy_clock_s=lambda: float(next(ticks)))
    trace = Trace.of(synthetic_conversation(5, seed=3))
    cluster.run(trace)
    assert len(trace) > 0
    assert cluster.policy_s == 0.0, "one tick between two reads is what reading costs"


@pytest.mark.parametrize("engine", ["compiled", "stepped"])
def test_a_run_leaves_no_cycle_behind(engine: Engine) -> None:
    trace = Trace.of(synthetic_conversation(2, seed=3))
    gc.disable()
    try:
        outcome = SimulatedCluster(PROFILE, None, SinglePool(2), engine=engine).run(trace)
        gaps = weakref.ref(outcome.gaps)
        assert min(outcome.columns.finished_ps) > 0
        outcome.columns.started_ps.append(0)  # a BufferError where somebody still holds the memory
        del outcome
        assert gaps() is None
    finally:
        gc.enable()


def run_both(trace: Trace, gpus: int) -> None:
    settings = Settings()
    for make in (lambda: SinglePool(2), lambda: hosted_policy("wattray", trace, settings, PROFILE, gpus, 0.0)):
        fast = SimulatedCluster(PROFILE, gpus, make(), 5.0, engine="compiled").run(trace)
        slow = SimulatedCluster(PROFILE, gpus, make(), 5.0, engine="stepped").run(trace)
        assert_same(fast, slow)
        for share in (0.5, 0.99):
            assert fast.gaps.percentile_s(share) == pytest.approx(slow.gaps.percentile_s(share), rel=0.01)


def test_policies_on_a_synthetic_trace_agree() -> None:
    run_both(Trace.of(synthetic_conversation(60, seed=3)), 32)


@pytest.mark.parametrize("name", ["azure2023_conv", "azure2023_code"])
def test_policies_on_five_minutes_of_a_real_trace_agree(data: Path, name: str) -> None:
    requests = read_azure((data / "traces" / f"{name}.csv").read_text())
    run_both(Trace.of(window(requests, 600, 300)), 32)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["azure2023_conv", "azure2023_code"])
def test_policies_on_a_whole_real_trace_agree(data: Path, name: str) -> None:
    run_both(Trace.of(read_azure((data / "traces" / f"{name}.csv").read_text())), 64)
