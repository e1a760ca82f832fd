"""No policy that holds the SLO for 99 % and loses nothing spends less than the bound."""

from collections.abc import Hashable, Sequence
from random import Random

import numpy as np
import pytest

from control_plane.actions import Action, SetFrequency, SetReplicas, Step
from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import PoolName, ReplicaId, ReplicaView, Role, Slo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.policy import Governor, Needs
from control_plane.serving.routing import Candidate
from control_plane.settings import Settings
from control_plane.simulation.bound import energy_bound
from control_plane.simulation.fleet import Fleet
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.serving_cluster import SimulatedCluster
from control_plane.simulation.trace import Trace, scaled
from control_plane.simulation.traces import synthetic_trace
from control_plane.simulation.what_if import hosted_policy

PROFILE = RooflineProfile()
TABLES = {tp: ShapeTables.of(PROFILE, tp) for tp in PROFILE.tps}
EASY = Slo(1e6, 1e6, 1e6, 1e6)
"""An SLO that anything holds: every run counts against the bound."""


class FrugalFleet:
    """One shape at one clock, packed: requests go to the fullest replica that may take more; replicas come and go at
    once with the load. What a clairvoyant would come close to."""

    def __init__(self, tp: int, freq_mhz: int, together: int, most: int) -> None:
        self._tp, self._freq_mhz, self._together, self._most = tp, freq_mhz, together, most
        self._load: dict[ReplicaId, int] = {}
        self._clocked: set[ReplicaId] = set()

    needs = Needs()
    splits_phases = False

    def first_replicas(self) -> Sequence[SetReplicas]:
        return [SetReplicas(pool, self._tp, 1, "", role) for pool, role in self.roles.items()]

    @property
    def roles(self) -> dict[PoolName, Role]:
        return {PoolName("p"): Role.COMBINED}

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return None

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        raise NotImplementedError

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        chosen = self._fullest(candidates)
        return None if chosen is None else (chosen.pool, chosen.replica_id)

    def _fullest(self, candidates: Sequence[Candidate]) -> Candidate | None:
        if not candidates:
            return None
        load = {c.replica_id: self._load.get(c.replica_id, 0) for c in candidates}
        free = [c for c in candidates if load[c.replica_id] < self._together]
        chosen = (
            max(free, key=lambda c: load[c.replica_id]) if free else min(candidates, key=lambda c: load[c.replica_id])
        )
        self._load[chosen.replica_id] = load[chosen.replica_id] + 1
        return chosen

    def first_token(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, ttft_s: float) -> None:
        pass

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self._load[replica_id] -= 1

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self._load[replica_id] -= 1

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        actions: list[Action] = []
        for pool, role in self.roles.items():
            busy = sum(view.running + view.waiting for name, view in replicas if name == pool)
            wanted = min(self._most, max(1, -(-busy // self._together)))
            actions.append(SetReplicas(pool, self._tp, wanted, "", role))
        for _, view in replicas:
            if view.freq_mhz != self._freq_mhz:
                actions.append(SetFrequency(view.replica_id, self._freq_mhz, ""))
        return Step(tuple(actions), now_s + 0.5)


class FrugalSplitFleet(FrugalFleet):
    """The same with prefill and decode on replicas of their own."""

    needs = Needs()
    splits_phases = True

    @property
    def roles(self) -> dict[PoolName, Role]:
        return {PoolName("p"): Role.PREFILL, PoolName("d"): Role.DECODE}

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        chosen = self._fullest(candidates)
        return None if chosen is None else chosen.replica_id


def random_trace(random: Random) -> Trace:
    kind, scale = random.choice(["conv", "code"]), random.choice([0.02, 0.2, 1.0])
    trace = scaled(synthetic_trace(kind, 60 / 3600, scale * 3, random.randint(0, 999)), 1)
    if len(trace) and random.random() < 0.5:
        outputs = np.minimum(trace.output_tokens, random.choice([1, 3, 40])).astype(np.int32)
        trace = Trace(trace.arrival_ps, trace.input_tokens, outputs)
    return trace


def assert_above_the_bound(trace: Trace, outcome: Simulated, slo: Slo, idle_gpus: int) -> None:
    until_s = trace.duration_s
    bound = energy_bound(trace, TABLES, slo, idle_gpus=idle_gpus, until_s=until_s)
    if outcome.lost == 0 and outcome.slo_attainment(slo) >= 0.99:
        assert outcome.energy_j >= bound.energy_j


def tightest_slo(outcome: Simulated) -> Slo:
    """The limits that this run just holds: where the bound that knows them comes closest to it."""
    rows = outcome.trace.types() // 3
    ttft_s = [
        float(np.percentile(outcome.ttft_s[rows == row], 99.7)) if (rows == row).any() else 1.0 for row in (0, 1, 2)
    ]
    return Slo(*ttft_s, float(np.percentile(outcome.mean_tbt_s, 99.7)) + 1e-9)


def fuzz(seed: int) -> None:
    random = Random(seed)
    trace = random_trace(random)
    if not len(trace):
        return
    kind = random.choice([FrugalFleet, FrugalSplitFleet])
    tp, freq_mhz = random.choice(PROFILE.tps), random.choice([600, 795, 1005, 1200, 1590, 1980])
    fleet: Fleet = kind(tp, freq_mhz, random.choice([4, 30, 200, 256]), 20)
    idle_gpus = random.choice([0, 0, 320])
    outcome = SimulatedCluster(PROFILE, None, fleet, sample_s=50.0, idle_gpus=idle_gpus).run(trace)
    for slo in (Slo(), EASY, tightest_slo(outcome)):
        assert_above_the_bound(trace, outcome, slo, idle_gpus)


@pytest.mark.parametrize("seed", range(40))
def test_no_frugal_fleet_beats_the_bound(seed: int) -> None:
    fuzz(seed)


@pytest.mark.soak
@pytest.mark.parametrize("batch", range(8))
def test_no_frugal_fleet_beats_the_bound_in_many_tries(batch: int) -> None:
    for seed in range(1000 + 50 * batch, 1050 + 50 * batch):
        fuzz(seed)


def test_the_tbt_limit_makes_the_trace_dearer() -> None:
    """Decoders may not ride along with long prefills for nothing: each iteration counts for their limit."""
    trace = synthetic_trace("conv", 0.05, 2.0, seed=3)
    tight, none = (energy_bound(trace, TABLES, Slo(tbt_s=limit)).energy_j for limit in (0.1, 1e6))
    assert tight > 1.03 * none


@pytest.mark.parametrize("kind", ["conv", "code"])
def test_neither_wattray_nor_the_baseline_beats_the_bound(kind: str) -> None:
    trace = synthetic_trace(kind, 0.1, 2.0, seed=5)
    for idle_gpus in (0, 64):
        for fleet in (hosted_policy("wattray", trace, Settings(), PROFILE, 64, 0.0), SinglePool(3)):
            outcome = SimulatedCluster(PROFILE, 64, fleet, idle_gpus=idle_gpus).run(trace)
            assert_above_the_bound(trace, outcome, EASY, idle_gpus)
            assert_above_the_bound(trace, outcome, Slo(), idle_gpus)


def test_one_lonely_request_costs_at_least_its_iterations() -> None:
    """Where nothing can be shared the bound is close: one prompt and its tokens, on the cheapest shape."""
    trace = Trace(np.array([0]), np.array([512], np.int32), np.array([64], np.int32))
    bound = energy_bound(trace, TABLES, Slo()).energy_j
    cheapest = min(
        SimulatedCluster(PROFILE, None, _Fixed(tp, freq), idle_gpus=0).run(trace).energy_j
        for tp in PROFILE.tps
        for freq in (795, 990, 1200, 1395)
    )
    assert 0.5 * cheapest < bound <= cheapest


@pytest.mark.parametrize("idle_gpus", [0, 320])
def test_where_nothing_is_decoded_prompts_alone_are_priced(idle_gpus: int) -> None:
    trace = synthetic_trace("code", 60 / 3600, 60.0, seed=4)
    prompts = Trace(trace.arrival_ps, trace.input_tokens, np.ones_like(trace.output_tokens))
    all_j, prompts_j = (energy_bound(one, TABLES, Slo(), idle_gpus=idle_gpus).energy_j for one in (trace, prompts))
    assert 0.5 * all_j < prompts_j < all_j


def test_a_billed_fleet_raises_the_bound_by_its_idle_power() -> None:
    trace = synthetic_trace("conv", 0.05, seed=1)
    released = energy_bound(trace, TABLES, Slo()).energy_j
    billed = energy_bound(trace, TABLES, Slo(), idle_gpus=16, until_s=240.0)
    assert billed.idle_energy_j == pytest.approx(16 * 84 * 240)
    assert released < billed.energy_j < released + billed.idle_energy_j


def test_the_bound_grows_with_the_slo_share_and_is_nothing_for_nothing() -> None:
    trace = synthetic_trace("conv", 0.05, seed=2)
    loose, strict = (energy_bound(trace, TABLES, Slo(), attainment=share).energy_j for share in (0.9, 1.0))
    assert loose < strict
    assert energy_bound(trace.between(0, 0), TABLES, Slo()).energy_j == 0


class _Fixed(FrugalFleet):
    def __init__(self, tp: int, freq_mhz: int) -> None:
        super().__init__(tp, freq_mhz, 256, 1)
