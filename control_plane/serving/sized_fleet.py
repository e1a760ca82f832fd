"""Controllers for fleets that are sized from the recent past.

The cluster's controller replays the last arrivals every minute and asks for as many replicas as their worst backlog
needed; a pool's controller follows its budget. More at once, fewer only when the highest want of a while allows it.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from control_plane.actions import Action, SetGpuBudget, SetReplicas, Step
from control_plane.domain import PoolName, Role
from control_plane.serving.arrival_log import Answers, Arrivals
from control_plane.serving.fluid_sizing import Demand, dispersion, fewest_servers, peak_rate
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot

Sizer = Callable[[Arrivals, float, float], Mapping[PoolName, int]]
"""(recent arrivals, now in s, margin) -> replicas by pool. With a margin of 1.1 the past is taken for 10 % faster."""


@dataclass(frozen=True, slots=True)
class SizedPool:
    """What replicas of a pool are."""

    pool: PoolName
    tp: int
    role: Role


class SizedCluster:
    """GPU budgets by what a sizer wants, held up for ``hold_s`` before they fall."""

    def __init__(
        self,
        pools: tuple[SizedPool, ...],
        sizer: Sizer,
        first: Arrivals,
        first_s: float,
        every_s: float = 60.0,
        hold_s: float = 900.0,
        margin: "Margin | None" = None,
    ) -> None:
        """``first``: the past as far as it is known before anything arrives; for ``first_s`` no less is planned for
        than it needs."""
        self._pools, self._sizer, self._every_s, self._hold_s = pools, sizer, every_s, hold_s
        self._first = sizer(first, float(first.at_s[-1]) if len(first) else 0.0, 1.0)
        self._margin = margin or Margin()
        self._first_s = first_s
        self._began_s: float | None = None
        self._wants: deque[tuple[float, Mapping[PoolName, int]]] = deque()

    def step(self, seen: ClusterSnapshot) -> Step:
        wanted = self._sizer(seen.recent, seen.now_s, self._margin.after(seen.recent.answers))
        if self._began_s is None:
            self._began_s = seen.now_s
        if seen.now_s < self._began_s + self._first_s:
            wanted = {pool: max(count, self._first.get(pool, 0)) for pool, count in wanted.items()}
        self._wants.append((seen.now_s, wanted))
        while self._wants[0][0] < seen.now_s - self._hold_s:
            self._wants.popleft()
        replicas = {p.pool: max(wants[p.pool] for _, wants in self._wants) for p in self._pools}
        budgets = self._fitting(replicas, seen.gpus)
        actions: list[Action] = [
            SetGpuBudget(pool, gpus, f"the worst recent backlog needs {wanted[pool]} replicas, held {replicas[pool]}")
            for pool, gpus in budgets.items()
            if gpus != seen.gpu_budgets.get(pool)
        ]
        return Step(tuple(actions), seen.now_s + self._every_s)

    def _fitting(self, replicas: Mapping[PoolName, int], gpus: int) -> dict[PoolName, int]:
        """One replica each, as far as GPUs are left, and the rest in proportion to the wants where not all fit."""
        tps = {p.pool: p.tp for p in self._pools}
        wanted = sum(replicas[pool] * tp for pool, tp in tps.items())
        if wanted <= gpus:
            return {pool: replicas[pool] * tp for pool, tp in tps.items()}
        given = dict.fromkeys(tps, 0)
        left = gpus
        while True:
            lacking = {
                pool: replicas[pool] / given[pool] if given[pool] else math.inf
                for pool, tp in tps.items()
                if tp <= left and given[pool] < replicas[pool]
            }
            if not lacking:
                return {pool: given[pool] * tp for pool, tp in tps.items()}
            neediest = max(lacking, key=lambda pool: (lacking[pool], pool))
            given[neediest] += 1
            left -= tps[neediest]


class BudgetPool:
    """As many replicas as the pool's budget holds; clocks are the governors' matter."""

    def __init__(self, pool: SizedPool, every_s: float = 60.0) -> None:
        self._pool, self._every_s, self._replicas = pool, every_s, 0

    def plan(self) -> str:
        return f"{self._replicas} x TP{self._pool.tp}" if self._replicas else "none yet"

    def step(self, seen: PoolSnapshot) -> Step:
        pool = self._pool
        wanted = self._replicas = seen.gpu_budget // pool.tp
        have = sum(view.counts and view.tp == pool.tp for view in seen.replicas)
        why = f"{seen.gpu_budget} GPUs"
        actions = () if have == wanted else (SetReplicas(pool.pool, pool.tp, wanted, why, pool.role),)
        return Step(actions, seen.now_s + self._every_s)


class Margin:
    """How much faster than recorded the past is taken, learnt from the first tokens that came late.

    Where in the long run more than ``target`` of them are late the margin grows, else it shrinks: adaptive conformal
    inference (Gibbs and Candès, NeurIPS 2021), a step a minute.
    """

    def __init__(
        self, target: float = 0.004, step: float = 0.004, least: float = 0.95, most: float = 1.6, worst: float = 25.0
    ) -> None:
        """``worst``: of a minute in which more were late than so many times the target, this is learnt."""
        self._target, self._step, self._least, self._most, self._worst = target, step, least, most, worst
        self._margin, self._seen = 1.0, Answers()

    def after(self, answers: Answers) -> float:
        """The margin now that so many of all first tokens were late."""
        more, late = answers.answered - self._seen.answered, answers.late - self._seen.late
        self._seen = answers
        if more > 0:
            missed = min(self._worst, late / more / self._target)
            self._margin = min(self._most, max(self._least, self._margin + self._step * (missed - 1)))
        return self._margin


@dataclass(frozen=True, slots=True)
class PrefillNeed:
    """What a prefill pool promises, as sizing counts it."""

    wait_limits: Sequence[tuple[float, float, float]]
    """(from input tokens, to input tokens, limit in s)."""
    late_share: float
    max_use: float


@dataclass(frozen=True, slots=True)
class BurstRule:
    """How much faster than recorded the last minutes are replayed: 1.05 for steady arrivals, more for bursty ones."""

    least: float = 1.05
    per_log: float = 0.05
    most: float = 1.5

    def factor(self, idc: float) -> float:
        return min(self.most, self.least + self.per_log * math.log1p(idc))


LINK_WAIT_S, LATE_AT_LINK = 0.2, 0.005
"""No more than this share of the prompts may wait longer than this for a decode replica's link: the client's first
token waits for it."""


class PhaseSizer:
    """Sizes prefill pools by their backlog, and decode by Little's law and by its receiving link."""

    def __init__(
        self,
        classes: Mapping[PoolName, tuple[float, float]],
        needs: Mapping[PoolName, PrefillNeed],
        prefill_rates: Mapping[PoolName, float],
        decode: PoolName,
        link_rate: float,
        burst: BurstRule,
        gap_s: float = 0.045,
        decoding_each: float = 170.0,
        link_use: float = 0.6,
        decode_factor: float = 1.15,
    ) -> None:
        """``classes``: the input tokens [from, to) of each prefill pool."""
        self._classes, self._needs, self._rates, self._decode = classes, needs, prefill_rates, decode
        self._link_rate, self._burst = link_rate, burst
        self._decode_factor = decode_factor
        self._gap_s, self._decoding_each, self._link_use = gap_s, decoding_each, link_use

    def __call__(self, arrivals: Arrivals, now_s: float, margin: float) -> Mapping[PoolName, int]:
        wants = dict.fromkeys((*self._classes, self._decode), 1)
        if len(arrivals) == 0:
            return wants
        factor = self._burst.factor(dispersion(arrivals.at_s, arrivals.input_tokens))
        lately = arrivals.between(now_s - 600.0, math.inf)
        for recorded, faster in ((lately, factor), (arrivals, 1.0)):
            past = recorded.faster(faster * margin)
            if len(past) == 0:
                continue
            for pool, (least, below) in self._classes.items():
                mine = past.where((past.input_tokens >= least) & (past.input_tokens < below))
                if len(mine) == 0:
                    continue
                need, rate = self._needs[pool], self._rates[pool]
                limits = -mine.input_tokens / rate
                for tokens, upto, limit_s in need.wait_limits:
                    limits[(mine.input_tokens >= tokens) & (mine.input_tokens < upto)] += limit_s
                demand = Demand(mine.at_s, mine.input_tokens, limits, need.late_share, need.max_use)
                wants[pool] = max(wants[pool], fewest_servers(demand, rate))
            decoders = self._decoders(recorded.faster(max(1.0, margin) * self._decode_factor))
            wants[self._decode] = max(wants[self._decode], decoders)
        return wants

    def _decoders(self, past: Arrivals) -> int:
        decoding = peak_rate(past.at_s, past.output_tokens, 30.0) * self._gap_s
        by_batch = math.ceil(decoding / self._decoding_each)
        at_link = Demand(past.at_s, past.input_tokens, LINK_WAIT_S, LATE_AT_LINK, self._link_use)
        return max(1, by_batch, fewest_servers(at_link, self._link_rate))
