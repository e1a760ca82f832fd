"""Prefill and decode on different replicas: when the client has which token."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pytest

from control_plane.actions import SetReplicas, Step
from control_plane.domain import PoolName, ReplicaId, ReplicaView, Role, Slo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.replica_model import ReplicaLimits
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.policy import Governor, Needs
from control_plane.serving.routing import Candidate
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.scoring import score
from control_plane.simulation.serving_cluster import ClusterTimes, Engine, SimulatedCluster
from control_plane.simulation.trace import Trace

PROFILE = RooflineProfile()
TOP = PROFILE.max_freq_mhz
TIMES = PROFILE.times(8)
BOTH = pytest.mark.parametrize("engine", ["compiled", "stepped"])


class OneOfEach:
    """A prefill and a decode replica, TP8 at full clock."""

    needs = Needs()
    splits_phases = True
    roles: Mapping[PoolName, Role] = {PoolName("p"): Role.PREFILL, PoolName("d"): Role.DECODE}
    tp = 8
    count: Mapping[Role, int] = {Role.PREFILL: 1, Role.DECODE: 1}

    def first_replicas(self) -> Sequence[SetReplicas]:
        return [SetReplicas(pool, self.tp, self.count[role], "", role) for pool, role in self.roles.items()]

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return None

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        return candidates[0].pool, candidates[0].replica_id

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        return candidates[0].replica_id

    def first_token(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, ttft_s: float) -> None:
        pass

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        pass

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        pass

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        return Step((), now_s + 60.0)


def run(
    engine: Engine,
    requests: Sequence[tuple[int, int, int]],
    kv_latency_s: float = 0.002,
    kv_bytes_per_token: float = 0.0,
    kv_tokens: int = 100_000,
    fleet: OneOfEach | None = None,
    **times_fields: float,
) -> Simulated:
    """Of (arrival in ps, input, output tokens); the link carries 50 GB/s. Each replica fills a node."""
    at_ps, inputs, outputs = zip(*requests, strict=True)
    trace = Trace(np.array(at_ps, np.int64), np.array(inputs, np.int32), np.array(outputs, np.int32))
    times = ClusterTimes(kv_latency_s=kv_latency_s, kv_bytes_per_token=kv_bytes_per_token, **times_fields)  # type: ignore[arg-type]
    tables = {tp: ShapeTables(PROFILE.times(tp), ReplicaLimits(kv_tokens), PROFILE.gpu, tp) for tp in (4, 8)}
    return SimulatedCluster(PROFILE, 32, fleet or OneOfEach(), times=times, engine=engine, tables=tables).run(trace)


def prefill_ps(tokens: int) -> int:
    return TIMES.alpha_ps(TOP)[tokens] + TIMES.attention_ps(TOP) * (tokens * (tokens + 1) // 2)


def decode_ps(context: int) -> int:
    return TIMES.alpha_ps(TOP)[1] + TIMES.context_ps * context


@BOTH
def test_the_client_has_the_first_token_after_the_hand_over(engine: Engine) -> None:
    columns = run(engine, [(0, 300, 4)]).columns
    hand_over_ps = prefill_ps(300) + 2 * 10**9
    assert columns.first_token_ps[0] == hand_over_ps
    assert columns.finished_ps[0] == hand_over_ps + sum(decode_ps(301 + n) for n in range(3))


@BOTH
def test_the_kv_of_the_prompt_travels_and_the_sampled_token_has_none(engine: Engine) -> None:
    columns = run(engine, [(0, 300, 4)], kv_bytes_per_token=50e9 / 1000).columns
    assert columns.first_token_ps[0] == prefill_ps(300) + 2 * 10**9 + 300 * 10**9


@BOTH
def test_a_single_token_needs_no_hand_over(engine: Engine) -> None:
    columns = run(engine, [(0, 300, 1)]).columns
    assert columns.first_token_ps[0] == columns.finished_ps[0] == prefill_ps(300)


@BOTH
def test_a_full_decode_replica_delays_the_first_token(engine: Engine) -> None:
    columns = run(engine, [(0, 60, 40), (0, 60, 40)], kv_tokens=120).columns
    assert columns.first_token_ps[1] == columns.finished_ps[0]


@BOTH
def test_a_slow_hand_over_breaks_the_ttft_limit(engine: Engine) -> None:
    slo = Slo()
    held = run(engine, [(0, 100, 10)])
    assert score(held, slo).slo_attainment == 1.0
    slow = run(engine, [(0, 100, 10)], kv_latency_s=slo.ttft_short_s)
    assert score(slow, slo).slo_attainment == 0.0
    assert score(slow, slo).ttft_p50_s == pytest.approx(slo.ttft_short_s + prefill_ps(100) / 1e12)


@BOTH
def test_every_token_but_the_first_has_one_gap(engine: Engine) -> None:
    requests = [(n * 10**10, 50 + 7 * n, 1 + n % 9) for n in range(40)]
    gaps = run(engine, requests, kv_tokens=400).gaps
    assert gaps.bins.sum() == sum(output - 1 for _, _, output in requests)


class ShareALink(OneOfEach):
    """Two of a role, used in turn, and one of the other."""

    def __init__(self, twice: Role) -> None:
        self.count = {Role.PREFILL: 1, Role.DECODE: 1} | {twice: 2}
        self._turn = {Role.PREFILL: 0, Role.DECODE: 0}

    def _next(self, role: Role, candidates: Sequence[Candidate]) -> Candidate:
        self._turn[role] += 1
        return candidates[self._turn[role] % len(candidates)]

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        chosen = self._next(Role.PREFILL, candidates)
        return chosen.pool, chosen.replica_id

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        return self._next(Role.DECODE, candidates).replica_id


SLOW_LINK = 50e9 / 1000
"""Bytes per token with which a token takes a millisecond between nodes."""


@BOTH
@pytest.mark.parametrize("twice", [Role.PREFILL, Role.DECODE])
def test_transfers_wait_for_both_ends_of_their_link(engine: Engine, twice: Role) -> None:
    """Two prefill replicas end at once and share the receiver; one that prefills two prompts in a pass is itself the
    end that is shared."""
    columns = run(engine, [(0, 300, 4), (0, 300, 4)], kv_bytes_per_token=SLOW_LINK, fleet=ShareALink(twice)).columns
    prefilled_ps = prefill_ps(300) if twice is Role.PREFILL else None
    first, second = sorted(columns.first_token_ps)
    assert second - first >= 300 * 10**9 - max(decode_ps(301), 1)
    if prefilled_ps is not None:
        assert first == prefilled_ps + 2 * 10**9 + 300 * 10**9


@BOTH
def test_a_transfer_inside_a_node_takes_nvlink(engine: Engine) -> None:
    fleet = OneOfEach()
    fleet.tp = 4
    columns = run(engine, [(0, 300, 4)], kv_bytes_per_token=SLOW_LINK, fleet=fleet).columns
    times = PROFILE.times(4)
    prefilled_ps = times.alpha_ps(TOP)[300] + times.attention_ps(TOP) * (300 * 301 // 2)
    assert columns.first_token_ps[0] == pytest.approx(prefilled_ps + 2 * 10**9 + 300 * 10**9 / 9, abs=1)


@BOTH
def test_a_streamed_cache_has_one_layer_left_when_the_prefill_ends(engine: Engine) -> None:
    columns = run(engine, [(0, 300, 4)], kv_bytes_per_token=SLOW_LINK / 1000, kv_streamed=True).columns
    assert columns.first_token_ps[0] == prefill_ps(300) + 2 * 10**9 + 300 * 10**6 // 80


@BOTH
def test_a_streamed_cache_waits_for_its_link_all_the_same(engine: Engine) -> None:
    columns = run(engine, [(0, 300, 4)], kv_bytes_per_token=SLOW_LINK, kv_streamed=True).columns
    assert columns.first_token_ps[0] == 300 * 10**9 + 2 * 10**9
