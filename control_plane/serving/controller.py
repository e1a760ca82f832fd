"""The two-level hierarchy of the policy ``wattray``: a controller for the cluster and one per pool.

The cluster's controller shares the GPUs among the pools, rarely. A pool's controller plans replicas and tensor
parallelism now and then, and clocks every few seconds.
"""

import math
from collections.abc import Mapping

from control_plane.actions import Action, SetFrequency, SetGpuBudget, Step
from control_plane.domain import ClassLoad, InputClass, Load, PoolName, ReplicaId, ReplicaState, Shape
from control_plane.ports import EnergyProfile
from control_plane.serving.frequency_policy import FrequencyPolicy
from control_plane.serving.pool_policy import PoolPlan, least_power_plan, plan_at
from control_plane.serving.reconcile import reconcile
from control_plane.serving.reconfiguration_cost import ReconfigurationCost, start_energy_j
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot
from control_plane.settings import PoolSettings, Settings

TRICKLE_RPS = 0.05
"""A pool that sees nothing is planned for one request of each of its classes in twenty seconds."""


class LeastPowerCluster:
    """Shares the GPUs among the pools: what each needs for its predicted load, the rest as spare room."""

    def __init__(self, settings: Settings, profile: EnergyProfile, idle_gpu_w: float) -> None:
        self._settings = settings
        self._profile = profile
        self._idle_gpu_w = idle_gpu_w

    def step(self, seen: ClusterSnapshot) -> Step:
        needs = {
            pool.pool: self._gpus_needed(pool, seen.forecast.get(pool.pool, Load()), seen.gpus)
            for pool in self._settings.pools
        }
        actions: list[Action] = []
        for pool, gpus in share_gpus(needs, seen.gpus, min(self._profile.tps)).items():
            if gpus != seen.gpu_budgets.get(pool):
                rps = seen.forecast.get(pool, Load()).rps
                actions.append(SetGpuBudget(pool, gpus, f"forecast {rps:.2f} rps needs {needs[pool]} GPUs"))
        return Step(tuple(actions), seen.now_s + self._settings.cadence.cluster_s)

    def _gpus_needed(self, pool: PoolSettings, forecast: Load, gpus: int) -> int:
        load = with_trickle(forecast, pool).scaled(1 + self._settings.sharding.headroom_ratio)
        plan = least_power_plan(self._profile, load, gpus, self._settings.sharding.min_replicas, self._idle_gpu_w)
        return gpus if plan is None else plan.gpus


def share_gpus(needs: Mapping[PoolName, int], gpus: int, smallest: int) -> dict[PoolName, int]:
    """Budgets that sum to at most ``gpus``, in multiples of ``smallest``, the GPUs of the smallest replica.

    Every pool that needs any gets room for one replica first, the neediest pools before the others where not all
    fit. The rest follows the needs in proportion, spare GPUs too: a pool can then overlap two shapes.
    """
    total, units = sum(needs.values()), gpus // smallest
    wanted = {pool: math.ceil(need / smallest) for pool, need in needs.items()}
    neediest = sorted((pool for pool in needs if needs[pool] > 0), key=lambda pool: (-needs[pool], pool))
    if sum(wanted.values()) <= units:
        given = dict(wanted)
    else:
        given = dict.fromkeys(needs, 0) | dict.fromkeys(neediest[:units], 1)
    left = units - sum(given.values())
    missing = {pool: max(0.0, units * needs[pool] / total - given[pool]) for pool in neediest if given[pool]}
    most = sum(missing.values())
    for pool, share in missing.items():
        given[pool] += int(left * share / most) if most > 0 else 0
    left = units - sum(given.values())
    for pool in sorted(missing, key=lambda pool: (given[pool] - units * needs[pool] / total, pool))[:left]:
        given[pool] += 1
    return {pool: count * smallest for pool, count in given.items()}


class LeastPowerPool:
    """One pool: plans replicas every ``cadence.pool_s`` (at once in an emergency) and clocks every
    ``cadence.frequency_s``."""

    def __init__(
        self,
        pool: PoolSettings,
        settings: Settings,
        profile: EnergyProfile,
        idle_gpu_w: float,
        context_gpu_w: float,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._profile = profile
        self._idle_gpu_w = idle_gpu_w
        self._context_gpu_w = context_gpu_w
        self._frequency = FrequencyPolicy(
            pool.pool, pool.input_classes, profile, settings.slo.slo(), settings.frequency
        )
        self._plan: PoolPlan | None = None
        self._why = "start"
        self._next_plan_s = float("-inf")
        self._enough_since_s: float | None = None

    def plan(self) -> str:
        """What it is heading for, for people."""
        return "none yet" if self._plan is None else f"{self._plan.replicas} x {self._plan.shape}"

    def step(self, seen: PoolSnapshot) -> Step:
        if seen.now_s >= self._next_plan_s or self._overloaded(seen):
            self._replan(seen)
            self._next_plan_s = seen.now_s + self._settings.cadence.pool_s
        actions: list[Action] = []
        if self._plan is not None:
            actions += reconcile(self._pool.pool, self._plan, seen.replicas, seen.gpu_budget, self._why)
        actions += self._clocks(seen)
        return Step(tuple(actions), seen.now_s + self._settings.cadence.frequency_s)

    # replicas

    def _replan(self, seen: PoolSnapshot) -> None:
        load = with_trickle(seen.forecast, self._pool).at_least(seen.reactive)
        load = load.scaled(1 + self._settings.sharding.headroom_ratio)
        best = least_power_plan(
            self._profile, load, seen.gpu_budget, self._settings.sharding.min_replicas, self._idle_gpu_w
        )
        if best is None:
            return
        reason = f"{load.rps:.2f} rps with headroom → {best.replicas} x {best.shape}"
        current = self._current(seen)
        if current is None:
            self._adopt(best, reason)
            return
        tp, replicas = current
        kept = plan_at(self._profile, load, tp, replicas, self._idle_gpu_w)
        if kept is None or replicas * tp > seen.gpu_budget:
            self._adopt(best, f"{replicas} x TP{tp} cannot hold the SLO: {reason}")
            return
        if (best.shape.tp, best.replicas) == (tp, replicas):
            self._adopt(best, reason)
            return
        self._consider(seen.now_s, kept, best, reason)

    def _consider(self, now_s: float, kept: PoolPlan, best: PoolPlan, reason: str) -> None:
        """``kept`` still works and ``best`` is cheaper: change when that pays and has been so for a while."""
        sharding = self._settings.sharding
        if self._enough_since_s is None:
            self._enough_since_s = now_s
        new_gpus = best.gpus if best.shape.tp != kept.shape.tp else max(0, best.gpus - kept.gpus)
        cost = ReconfigurationCost(
            start_energy_j(new_gpus, self._context_gpu_w, sharding.startup_s), kept.power_w - best.power_w
        )
        held = now_s - self._enough_since_s >= sharding.scale_down_hold_s
        if held and cost.pays_within(max(self._settings.cadence.pool_s, sharding.scale_down_hold_s)):
            self._adopt(best, f"{reason}; saves {cost.saves_w:.0f} W")
        else:
            self._plan = kept

    def _adopt(self, plan: PoolPlan, why: str) -> None:
        self._plan, self._why, self._enough_since_s = plan, why, None

    def _current(self, seen: PoolSnapshot) -> tuple[int, int] | None:
        """The (TP, count) this pool is heading for; after a restart, what runs."""
        if self._plan is not None:
            return self._plan.shape.tp, self._plan.replicas
        counts: dict[int, int] = {}
        for view in seen.replicas:
            if view.counts:
                counts[view.tp] = counts.get(view.tp, 0) + 1
        if not counts:
            return None
        tp = max(counts, key=lambda name: name * counts[name])
        return tp, counts[tp]

    def _overloaded(self, seen: PoolSnapshot) -> bool:
        """More arrives now than the plan carries at full clock: plan again without waiting for the period."""
        if self._plan is None or seen.reactive.rps <= 0:
            return False
        full = Shape(self._plan.shape.tp, self._profile.freqs_mhz[-1])
        return not self._profile.meets_slo(full, seen.reactive.scaled(1 / self._plan.replicas))

    # clocks

    def _clocks(self, seen: PoolSnapshot) -> list[SetFrequency]:
        ready = [view for view in seen.replicas if view.state is ReplicaState.READY]
        self._frequency.forget(frozenset(view.replica_id for view in ready))
        if not ready:
            return []
        speed: dict[ReplicaId, int] = {view.replica_id: view.tp for view in ready}
        total_speed = sum(speed.values())
        load = seen.reactive.at_least(trickle(self._pool))
        actions = []
        for view in ready:
            share = load.scaled(speed[view.replica_id] / total_speed)
            choice = self._frequency.choose(seen.now_s, view, share)
            if choice.freq_mhz != view.freq_mhz:
                actions.append(SetFrequency(view.replica_id, choice.freq_mhz, choice.why))
        return actions


TYPICAL_INPUT = {InputClass.SHORT: 128.0, InputClass.MEDIUM: 600.0, InputClass.LONG: 2200.0}
_TYPICAL_OUTPUT = 200.0


def trickle(pool: PoolSettings) -> Load:
    """The least load a pool is planned for."""
    return Load({name: ClassLoad(TRICKLE_RPS, TYPICAL_INPUT[name], _TYPICAL_OUTPUT) for name in pool.input_classes})


def with_trickle(load: Load, pool: PoolSettings) -> Load:
    return load.at_least(trickle(pool))
