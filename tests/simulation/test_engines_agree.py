"""The fast engine equals the oracle: every completion time, routing choice and clock change."""

import gc
import weakref
from collections.abc import Hashable, Mapping, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import pytest

from control_plane.actions import Action, SetFrequency, SetReplicas, Step
from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import PoolName, ReplicaId, ReplicaState, ReplicaView
from control_plane.hardware.coalesced_replica import CoalescedReplica
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.replica_model import ReplicaLimits
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.routing import Candidate
from control_plane.settings import Settings
from control_plane.simulation import compiled_floor, serving_cluster
from control_plane.simulation.compiled_floor import CompiledFloor
from control_plane.simulation.fleet import Role
from control_plane.simulation.floor import EngineFactory
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.serving_cluster import ClusterTimes, NodeFailure, SimulatedCluster
from control_plane.simulation.stepped_replica import SteppedReplica
from control_plane.simulation.trace import Trace
from control_plane.simulation.traces import read_azure, synthetic_conversation, window
from control_plane.simulation.what_if import hosted_policy

PROFILE = RooflineProfile()


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
    """Routes, scales and changes clocks at random, but by seed: what any policy might do."""

    def __init__(self, random: Random, replicas: int, tps: Sequence[int], split: bool) -> None:
        self._random, self._replicas, self._tps = random, replicas, tps
        self._pools = (PoolName("p"), PoolName("d")) if split else (PoolName("p"),)
        self.log: list[tuple[str, Hashable, ReplicaId]] = []

    def first_replicas(self) -> Sequence[SetReplicas]:
        return [SetReplicas(pool, self._tps[0], self._replicas, "") for pool in self._pools]

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        if not candidates or self._random.random() < 0.02:
            return None
        chosen = self._random.choice(candidates)
        self.log.append(("route", request_id, chosen.replica_id))
        return chosen.pool, chosen.replica_id

    def first_token(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self.log.append(("first", request_id, replica_id))

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self.log.append(("ended", request_id, replica_id))

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self.log.append(("dropped", request_id, replica_id))

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        actions: list[Action] = []
        for _, view in replicas:
            self.log.append(("seen", (view.waiting, view.running, view.oldest_wait_s), view.replica_id))
            if view.state is ReplicaState.READY and self._random.random() < 0.7:
                freq_mhz = self._random.choice(PROFILE.gpu.freqs_mhz[::9])
                actions.append(SetFrequency(view.replica_id, freq_mhz, ""))
        if self._random.random() < 0.2:
            pool, tp = self._random.choice(self._pools), self._random.choice(self._tps)
            at_least = 1 if tp == self._tps[0] else 0
            actions.append(SetReplicas(pool, tp, self._random.randint(at_least, self._replicas + 1), ""))
        return Step(tuple(actions), now_s + self._random.choice([0.003, 0.2, 0.4, 1.0]))


class ErraticSplitFleet(ErraticFleet):
    """The same with prefill and decode apart."""

    @property
    def roles(self) -> Mapping[PoolName, Role]:
        return {PoolName("p"): Role.PREFILL, PoolName("d"): Role.DECODE}

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        if not candidates:
            return None
        chosen = self._random.choice(candidates).replica_id
        self.log.append(("decode", request_id, chosen))
        return chosen


def fuzzed(
    seed: int, engine: EngineFactory | Literal["compiled"], whole: bool = False
) -> tuple[Simulated, ErraticFleet]:
    """``whole``: the same case without failures and with phases together."""
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
    split = random.random() < 0.3
    failures = [
        NodeFailure(random.uniform(0, 6), random.randint(0, 2), random.uniform(0.01, 3))
        for _ in range(random.choice([0, 0, 1, 3]))
    ]
    if whole:
        split, failures = False, []
    kind = ErraticSplitFleet if split else ErraticFleet
    fleet = kind(Random(seed + 1), random.randint(1, 3), tps, split)
    times = ClusterTimes(random.choice([0.0, 0.01, 2.0]), 0.005)
    gpus = random.choice([None, 48])
    cluster = SimulatedCluster(
        PROFILE, gpus, fleet, sample_s=0.7, times=times, failures=failures, engine=engine, tables=tables
    )
    return cluster.run(trace), fleet


@pytest.mark.parametrize("block", range(20))
def test_500_fuzzed_cases_agree(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        fast, fast_fleet = fuzzed(seed, CoalescedReplica)
        slow, slow_fleet = fuzzed(seed, SteppedReplica)
        assert fast_fleet.log == slow_fleet.log, f"seed {seed}"
        assert_same(fast, slow)


@pytest.mark.parametrize("block", range(20))
def test_500_fuzzed_cases_agree_compiled(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        fast, fast_fleet = fuzzed(seed, "compiled", whole=True)
        slow, slow_fleet = fuzzed(seed, SteppedReplica, whole=True)
        objects, objects_fleet = fuzzed(seed, CoalescedReplica, whole=True)
        assert fast_fleet.log == slow_fleet.log == objects_fleet.log, f"seed {seed}"
        assert_same(fast, slow)
        assert fast == objects, f"seed {seed}: energies too, to the last bit"
        np.testing.assert_array_equal(fast.gaps.bins, objects.gaps.bins)


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

    def run(engine: EngineFactory | Literal["compiled"]) -> Simulated:
        return SimulatedCluster(PROFILE, None, SinglePool(replicas), engine=engine, tables=tables).run(trace, 30.0)

    assert run("compiled") == run(CoalescedReplica)
    assert_same(run("compiled"), run(SteppedReplica))


def test_the_compiled_floor_refuses_what_it_does_not_know() -> None:
    cluster = SimulatedCluster(PROFILE, None, SinglePool(1), failures=[NodeFailure(1.0, 0)], engine="compiled")
    with pytest.raises(ValueError, match="neither failures nor phases apart"):
        cluster.run(Trace.of(synthetic_conversation(1, seed=3)))


@pytest.mark.parametrize(
    ("field", "value"), [("kv_link_bytes_per_s", 0.0), ("kv_latency_s", -1.0), ("cold_start_s", float("nan"))]
)
def test_times_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        ClusterTimes(**{field: value})


def test_a_long_trace_takes_the_kernel_and_a_short_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    class Noted(CompiledFloor):
        def play(self, until_ps: int) -> None:
            taken.append(until_ps)
            super().play(until_ps)

    monkeypatch.setattr(compiled_floor, "CompiledFloor", Noted)
    trace = Trace.of(synthetic_conversation(2, seed=3))
    short = SimulatedCluster(PROFILE, None, SinglePool(2)).run(trace)
    assert not taken
    monkeypatch.setattr(serving_cluster, "COMPILED_FROM", len(trace))
    assert SimulatedCluster(PROFILE, None, SinglePool(2)).run(trace) == short
    assert taken
    taken.clear()
    with_failures = SimulatedCluster(PROFILE, None, SinglePool(2), failures=[NodeFailure(1e6, 0)])
    assert with_failures.run(trace) == short
    assert not taken


def test_policies_are_billed_for_their_own_time() -> None:
    ticks = count()
    cluster = SimulatedCluster(PROFILE, None, SinglePool(2), policy_clock_s=lambda: float(next(ticks)))
    trace = Trace.of(synthetic_conversation(5, seed=3))
    cluster.run(trace)
    assert len(trace) > 0
    assert cluster.policy_s == 0.0, "one tick between two reads is what reading costs"


@pytest.mark.parametrize("engine", ["compiled", CoalescedReplica])
def test_a_run_leaves_no_cycle_behind(engine: EngineFactory | Literal["compiled"]) -> None:
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
        fast = SimulatedCluster(PROFILE, gpus, make(), 5.0).run(trace)
        slow = SimulatedCluster(PROFILE, gpus, make(), 5.0, engine=SteppedReplica).run(trace)
        assert_same(fast, slow)
        assert SimulatedCluster(PROFILE, gpus, make(), 5.0, engine="compiled").run(trace) == fast
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
