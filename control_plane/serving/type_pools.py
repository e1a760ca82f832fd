"""Pools by request type, as DynamoLLM plans them (HPCA'25, section IV): servers of eight GPUs per pool, what is left
over handed up to the next larger pool, how each pool shards its GPUs, and the clock of each replica.

Cluster, pools and router each see the whole load and work out the same shares from it: nobody tells the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.actions import Action, SetFrequency, SetGpuBudget, Step
from control_plane.domain import (
    REQUEST_TYPES,
    Load,
    OutputClass,
    PoolName,
    ReplicaId,
    ReplicaState,
    RequestType,
    Shape,
)
from control_plane.ports import EnergyProfile
from control_plane.serving.controller import share_gpus
from control_plane.serving.frequency_policy import FrequencyPolicy
from control_plane.serving.pool_policy import PoolPlan, replicas_needed
from control_plane.serving.reconcile import reconcile
from control_plane.serving.reconfiguration_cost import ReconfigurationCost, start_energy_j
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot
from control_plane.settings import PoolSettings, Settings

SERVER_GPUS = 8
CLUSTER_S, POOL_S, CLOCK_S = 1800.0, 300.0, 5.0
"""The paper's cadences."""
SLOT_S = 1800.0
WEEK_SLOTS = round(7 * 86400 / SLOT_S)


def pool_name(kind: RequestType) -> PoolName:
    return PoolName(str(kind).lower())


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a policy may change. DynamoLLM changes all three, each of its baselines one or none."""

    instances: bool = False
    sharding: bool = False
    clocks: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What one pool serves, and with how many servers."""

    load: Load
    servers: int
    kept: float
    """Of all that comes to the pool, handed up from smaller ones too; the rest goes on to the next larger pool."""


def shares(profile: EnergyProfile, load: Load) -> Mapping[PoolName, Share]:
    """Smallest type first: each pool takes as many servers as its load fills and passes the rest on to the next larger
    pool; the largest rounds up. So does one whose rest would take more servers there than the one it takes here: a few
    short prompts among long ones have the long ones served at the short one's limit. (The paper hands up always.)"""
    full = Shape(max(profile.tps), profile.freqs_mhz[-1])

    def servers_for(part: Load) -> float:
        return 1 / max(1e-9, profile.max_load(full, part)) if part.rps > 0 else 0.0

    found: dict[PoolName, Share] = {}
    passed = Load()
    for kind, larger in zip(REQUEST_TYPES, (*REQUEST_TYPES[1:], None), strict=True):
        mine = passed + of_type(load, kind)
        needed = servers_for(mine)
        servers = math.floor(needed + 1e-9)
        kept = servers / needed if needed > 0 else 1.0
        rest = mine.scaled(1 - min(1.0, kept))
        theirs = Load() if larger is None else of_type(load, larger)
        if rest.rps > 0 and (larger is None or servers_for(theirs + rest) > servers_for(theirs) + 1):
            servers, kept, rest = servers + 1, 1.0, Load()
        found[pool_name(kind)] = Share(mine.scaled(min(1.0, kept)), servers, min(1.0, kept) if needed > 0 else 0.0)
        passed = rest
    return found


def of_type(load: Load, kind: RequestType) -> Load:
    """The requests of a type: those of its input class, where their predicted outputs are of its output class."""
    part = load.by_class.get(kind.input)
    if part is None or part.rps <= 0 or OutputClass.of(round(part.output_tokens)) != kind.output:
        return Load()
    return Load({kind.input: part})


class WeeklyTemplate:
    """The highest load that was seen in each half-hour of the week, looked up one period ahead."""

    def __init__(self) -> None:
        self._slots: dict[int, Load] = {}

    def predict(self, now_s: float, seen: Load) -> Load:
        """No less than is seen now, nor than this time last week, where that was seen."""
        slot = int(now_s // SLOT_S) % WEEK_SLOTS
        before = self._slots.get(slot, Load())
        after = self._slots.get((slot + 1) % WEEK_SLOTS, Load())
        self._slots[slot] = before.at_least(seen)
        return seen.at_least(before).at_least(after)


class TypeCluster:
    """Servers per pool, every half-hour. Without ``instances`` a pool keeps the most it ever had: provisioned for its
    peak, as far as that is known."""

    def __init__(self, profile: EnergyProfile, settings: Settings, knobs: Knobs) -> None:
        self._profile, self._settings, self._knobs = profile, settings, knobs
        self._template = WeeklyTemplate()
        self._most: dict[PoolName, int] = {}

    def step(self, seen: ClusterSnapshot) -> Step:
        load = self._template.predict(seen.now_s, next(iter(seen.forecast.values()), Load()))
        load = load.scaled(1 + self._settings.sharding.headroom_ratio)
        needs = {pool: share.servers * SERVER_GPUS for pool, share in shares(self._profile, load).items()}
        if not self._knobs.instances:
            self._most = needs = {pool: max(gpus, self._most.get(pool, 0)) for pool, gpus in needs.items()}
        if sum(needs.values()) > seen.gpus:
            needs = share_gpus(needs, seen.gpus, min(SERVER_GPUS, seen.gpus))
        actions: list[Action] = [
            SetGpuBudget(pool, gpus, f"{load.rps:.2f} rps in all, by type")
            for pool, gpus in needs.items()
            if gpus != seen.gpu_budgets.get(pool, 0)
        ]
        return Step(tuple(actions), seen.now_s + CLUSTER_S)


class TypePool:
    """One pool: how its GPUs are sharded every five minutes, its clocks every five seconds."""

    def __init__(
        self,
        pool: PoolSettings,
        profile: EnergyProfile,
        settings: Settings,
        idle_gpu_w: float,
        context_gpu_w: float,
        knobs: Knobs,
    ) -> None:
        self._pool, self._profile, self._settings, self._knobs = pool, profile, settings, knobs
        self._idle_gpu_w, self._context_gpu_w = idle_gpu_w, context_gpu_w
        classes = pool.input_classes
        self._frequency = FrequencyPolicy(pool.pool, classes, profile, settings.slo.slo(), settings.frequency)
        self._plan: PoolPlan | None = None
        self._budget = -1
        self._next_plan_s = float("-inf")

    def plan(self) -> str:
        return f"{self._plan.replicas} x TP{self._plan.shape.tp}" if self._plan else "none yet"

    def step(self, seen: PoolSnapshot) -> Step:
        if seen.now_s >= self._next_plan_s or seen.gpu_budget != self._budget:
            load = shares(self._profile, seen.forecast.at_least(seen.reactive))[self._pool.pool].load
            self._plan = self._next(load.scaled(1 + self._settings.sharding.headroom_ratio), seen.gpu_budget)
            self._budget, self._next_plan_s = seen.gpu_budget, seen.now_s + POOL_S
        actions: list[Action] = []
        if self._plan is not None:
            actions += reconcile(self._pool.pool, self._plan, seen.replicas, seen.gpu_budget, f"{seen.gpu_budget} GPUs")
        if self._knobs.clocks:
            actions += self._clocks(seen)
        return Step(tuple(actions), seen.now_s + CLOCK_S)

    def _next(self, load: Load, budget: int) -> PoolPlan:
        """The cheapest sharding at the highest clock. What runs stays until a change pays within the period for what it
        costs and fits beside it: no engine changes its tensor parallelism in place."""
        best, now = self._cheapest(load, budget), self._plan
        if now is None or now.replicas == 0 or best.replicas == 0 or best.shape.tp == now.shape.tp:
            return best
        tp = now.shape.tp
        kept = self._of(load, tp, budget) or PoolPlan(now.shape, budget // tp, math.inf)
        start_j = start_energy_j(best.gpus, self._context_gpu_w, self._settings.sharding.startup_s)
        pays = ReconfigurationCost(start_j, kept.power_w - best.power_w).pays_within(POOL_S)
        return best if pays and best.gpus + now.gpus <= budget else kept

    def _cheapest(self, load: Load, budget: int) -> PoolPlan:
        tps = self._profile.tps if self._knobs.sharding else [max(self._profile.tps)]
        plans = [plan for tp in tps if (plan := self._of(load, tp, budget)) is not None]
        if plans:
            return min(plans, key=lambda plan: (plan.power_w, plan.gpus))
        tp = max((tp for tp in self._profile.tps if tp <= budget), default=max(self._profile.tps))
        return PoolPlan(Shape(tp, self._profile.freqs_mhz[-1]), budget // tp, 0.0)

    def _of(self, load: Load, tp: int, budget: int) -> PoolPlan | None:
        """Replicas of one tensor parallelism on the pool's GPUs; None where they cannot carry the load."""
        shape = Shape(tp, self._profile.freqs_mhz[-1])
        if budget == 0:
            return PoolPlan(shape, 0, 0.0)
        needed = replicas_needed(self._profile, load, shape) if load.rps > 0 else 1
        if needed is None or needed * tp > budget:
            return None
        replicas = needed if self._knobs.instances and self._knobs.sharding else budget // tp
        power_w = self._profile.power_w(shape, load.scaled(1 / replicas)) - tp * self._idle_gpu_w
        return PoolPlan(shape, replicas, replicas * power_w)

    def _clocks(self, seen: PoolSnapshot) -> list[SetFrequency]:
        ready = [view for view in seen.replicas if view.state is ReplicaState.READY]
        self._frequency.forget(frozenset(view.replica_id for view in ready))
        if not ready:
            return []
        gpus: Mapping[ReplicaId, int] = {view.replica_id: view.tp for view in ready}
        load = shares(self._profile, seen.reactive)[self._pool.pool].load
        chosen = []
        for view in ready:
            share = load.scaled(gpus[view.replica_id] / sum(gpus.values()))
            choice = self._frequency.choose(seen.now_s, view, share)
            if choice.freq_mhz != view.freq_mhz:
                chosen.append(SetFrequency(view.replica_id, choice.freq_mhz, choice.why))
        return chosen


def larger_first(home: RequestType) -> Sequence[PoolName]:
    """The pools that a request may go to, in order: its own, larger ones, then smaller ones from the largest down."""
    at = REQUEST_TYPES.index(home)
    return [pool_name(kind) for kind in (*REQUEST_TYPES[at:], *reversed(REQUEST_TYPES[:at]))]
