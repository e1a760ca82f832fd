"""Phases apart: prefill pools by TTFT class, decode packed onto few replicas, fleets sized from the worst recent
backlog, clocks by governors inside the replicas.

Splitwise (ISCA'24) and DistServe (OSDI'24) serve the phases apart for latency; here it is for energy: a replica
that decodes draws two to three times as much as an idle one however few requests it decodes, so few of them should; and
a prefill replica may run at a clock that would break the limits of requests that decode beside it.
"""

import math
from collections.abc import Sequence
from typing import Self

from control_plane.domain import LONG_FROM_TOKENS, MEDIUM_FROM_TOKENS, InputClass, PoolName, Role
from control_plane.serving.clock_costs import clock_costs, efficient_mhz
from control_plane.serving.governors import DecodeGovernor, LimitShares, PrefillGovernor
from control_plane.serving.phase_router import PhaseRouter, PhaseRules
from control_plane.serving.policy import (
    ClusterController,
    Governor,
    GpuBudgetError,
    HandOver,
    Needs,
    NoHandOverError,
    PoolController,
    Router,
    Site,
)
from control_plane.serving.sized_fleet import (
    BudgetPool,
    BurstRule,
    PhaseSizer,
    PrefillNeed,
    SizedCluster,
    SizedPool,
)
from control_plane.settings import PoolSettings

SHORT, LONG, DECODE = PoolName("prefill-short"), PoolName("prefill-long"), PoolName("decode")

SHORTER_CLASSES = (InputClass.SHORT, InputClass.MEDIUM)

# Chosen on the Azure 2023 traces, simulated with llama2-70b-h100-current; the same for every trace.
SHORT_CLOCK_RATIO = 1.2
"""Short prompts keep a clock in reserve for those that come next: so many times the efficient one at least."""
LIMIT_SHARES = LimitShares(shorter=0.5, long=0.7)
PROMPT_TOKENS, PROMPT_SHARE = 8192, 0.5
"""A prompt of so many tokens alone must take no more than this share of the long TTFT limit at full clock."""
DECODE_KV_TOKENS = 100_000
"""A decode replica's cache must hold so much: half of a full batch of the Azure 2023 conversations."""
TBT_SHARE = 0.8
PACKED, FULL_AT, MOST_DECODING = 200, 205, 240
OWN_S = {SHORT: 0.01, LONG: 0.02}
WAIT_SHARE = {SHORT: 0.6, LONG: 0.65}
LATE_SHARE = {SHORT: 0.006, LONG: 0.003}
MAX_USE = {SHORT: 0.5, LONG: 0.70}


class PhasesApart:
    """Implements ``Policy`` for engines that hand KV caches over."""

    needs = Needs(recent=True, forecast=False)
    splits_phases = True
    takes_quickest = False
    pools: Sequence[PoolSettings] = (
        PoolSettings(name=SHORT, input_classes=SHORTER_CLASSES),
        PoolSettings(name=LONG, input_classes=(InputClass.LONG,)),
        PoolSettings(name=DECODE, input_classes=tuple(InputClass)),
    )

    def __init__(self, site: Site, hand_over: HandOver) -> None:
        self._site, self._hand_over = site, hand_over
        self._costs = {tp: clock_costs(site.profile, tp) for tp in site.profile.tps}
        self._prefill_tp, self._decode_tp = self._smallest_tps()
        prefill, decode = self._prefill_tp, self._decode_tp
        pools = (
            SizedPool(SHORT, prefill, Role.PREFILL),
            SizedPool(LONG, prefill, Role.PREFILL),
            SizedPool(DECODE, decode, Role.DECODE),
        )
        self._sized = {pool.pool: pool for pool in pools}

    @property
    def least_gpus(self) -> int:
        """One replica of each pool."""
        return sum(pool.tp for pool in self._sized.values())

    def _smallest_tps(self) -> tuple[int, int]:
        """The least tensor parallelism that prefills a long prompt in good time, and the least whose cache holds a
        batch: small ones do the most work per GPU. The largest where none does."""
        profile = self._site.profile
        limit_s = PROMPT_SHARE * profile.slo.ttft_long_s

        def quick(tp: int) -> bool:
            full = self._costs[tp][-1]
            return full.prefill_s(PROMPT_TOKENS) + full.own_attention_s(PROMPT_TOKENS) <= limit_s

        tps = sorted(profile.tps)
        prefill = next((tp for tp in tps if quick(tp)), tps[-1])
        decode = next((tp for tp in tps if profile.limits(tp).kv_tokens >= DECODE_KV_TOKENS), tps[-1])
        return prefill, decode

    @classmethod
    def at(cls, site: Site) -> Self:
        """Raises NoHandOverError where engines hand nothing over, GpuBudgetError where there are too few GPUs."""
        if site.hand_over is None:
            raise NoHandOverError(
                "policy phases-apart needs engines that hand KV caches over, and these do not; use policy wattray, "
                "which then serves with combined replicas"
            )
        policy = cls(site, site.hand_over)
        if site.gpus < policy.least_gpus:
            raise GpuBudgetError(f"{site.gpus} GPUs are too few for phases-apart; at least {policy.least_gpus} work")
        return policy

    def router(self) -> Router:
        handicaps = {(LONG, name): 1_000 for name in SHORTER_CLASSES} | {(SHORT, InputClass.LONG): 20_000}
        kv_tokens = {pool: self._site.profile.limits(sized.tp).kv_tokens for pool, sized in self._sized.items()}
        return PhaseRouter(
            PhaseRules(handicaps, most_decoding=PACKED),
            self._hand_over,
            self._site.profile.slo,
            kv_tokens,
        )

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        costs, profile = self._costs[tp], self._site.profile
        least_mhz = efficient_mhz(profile, tp, profile.limits(tp).batch_tokens)
        if role is Role.DECODE:
            return DecodeGovernor(costs, least_mhz, TBT_SHARE * profile.slo.tbt_s, FULL_AT, MOST_DECODING)
        least_mhz = round(least_mhz * SHORT_CLOCK_RATIO) if pool == SHORT else least_mhz
        return PrefillGovernor(costs, least_mhz, LIMIT_SHARES, profile.gpu.settle_ns * 1e-9)

    def pool(self, pool: PoolName) -> PoolController:
        return BudgetPool(self._sized[pool])

    def cluster(self) -> ClusterController:
        site = self._site
        return SizedCluster(tuple(self._sized.values()), self.sizer(), site.first_arrivals, 600.0)

    def sizer(self, burst: BurstRule | None = None, decode_factor: float = 1.15) -> PhaseSizer:
        """``decode_factor``: how much quicker than recorded requests come to decode."""
        slo = self._site.profile.slo
        rates = dict.fromkeys((SHORT, LONG), self._costs[self._prefill_tp][-1].prefill_rate)
        limits = {
            SHORT: ((0.0, MEDIUM_FROM_TOKENS, slo.ttft_short_s), (MEDIUM_FROM_TOKENS, math.inf, slo.ttft_medium_s)),
            LONG: ((0.0, math.inf, slo.ttft_long_s),),
        }
        needs = {
            pool: PrefillNeed(
                [(least, upto, WAIT_SHARE[pool] * limit_s - OWN_S[pool]) for least, upto, limit_s in ranges],
                LATE_SHARE[pool],
                MAX_USE[pool],
            )
            for pool, ranges in limits.items()
        }
        return PhaseSizer(
            {SHORT: (0.0, LONG_FROM_TOKENS), LONG: (LONG_FROM_TOKENS, math.inf)},
            needs,
            rates,
            DECODE,
            self._hand_over.link_bytes_per_s / self._hand_over.bytes_per_token,
            burst or BurstRule(),
            decode_factor=decode_factor,
        )
