"""How many replicas of which tensor parallelism and clock a pool should run: the least power that holds the SLO."""

import math
from dataclasses import dataclass

from control_plane.domain import Load, Shape
from control_plane.ports import EnergyProfile


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool's target. ``power_w`` is what its replicas draw above the same GPUs left idle."""

    shape: Shape
    replicas: int
    power_w: float

    @property
    def gpus(self) -> int:
        return self.shape.tp * self.replicas


def least_power_plan(
    profile: EnergyProfile, load: Load, gpu_budget: int, min_replicas: int = 1, idle_gpu_w: float = 0.0
) -> PoolPlan | None:
    """The cheapest (TP, clock, count) within the budget that carries ``load`` within the SLO.

    ``idle_gpu_w`` is saved for every GPU left out, so it is credited per GPU used. Where nothing fits, the plan
    with the most capacity is returned; None only where not even one replica fits.
    """
    plans = [
        plan
        for tp in profile.tps
        for plan in _plans_of_tp(profile, load, tp, gpu_budget, min_replicas, idle_gpu_w)
        if plan is not None
    ]
    if plans:
        return min(plans, key=lambda plan: (plan.power_w, plan.gpus))
    return _most_capacity(profile, load, gpu_budget)


def plan_at(profile: EnergyProfile, load: Load, tp: int, replicas: int, idle_gpu_w: float) -> PoolPlan | None:
    """The cheapest clock for so many replicas of this TP, or None where no clock holds the SLO."""
    share = load.scaled(1 / replicas)
    fitting = [
        PoolPlan(shape, replicas, replicas * (profile.power_w(shape, share) - tp * idle_gpu_w))
        for shape in (Shape(tp, freq) for freq in profile.freqs_mhz)
        if profile.meets_slo(shape, share)
    ]
    return min(fitting, key=lambda plan: (plan.power_w, plan.shape.freq_mhz), default=None)


def replicas_needed(profile: EnergyProfile, load: Load, shape: Shape) -> int | None:
    """Fewest replicas of this shape that carry the load within the SLO; None where none ever would."""
    carried = profile.max_load(shape, load)
    if carried <= 0:
        return None
    return max(1, math.ceil(1 / carried - 1e-9))


def _plans_of_tp(
    profile: EnergyProfile, load: Load, tp: int, gpu_budget: int, min_replicas: int, idle_gpu_w: float
) -> list[PoolPlan | None]:
    fewest = replicas_needed(profile, load, Shape(tp, profile.freqs_mhz[-1]))
    if fewest is None:
        return []
    fewest = max(fewest, min_replicas)
    # More replicas at a lower clock can beat fewer at a higher one, by a little: two more are worth a look.
    counts = [count for count in range(fewest, fewest + 3) if count * tp <= gpu_budget]
    return [plan_at(profile, load, tp, count, idle_gpu_w) for count in counts]


def _most_capacity(profile: EnergyProfile, load: Load, gpu_budget: int) -> PoolPlan | None:
    full_clock = profile.freqs_mhz[-1]
    shapes = [Shape(tp, full_clock) for tp in profile.tps if tp <= gpu_budget]
    if not shapes:
        return None
    capacity = {shape: (gpu_budget // shape.tp) * profile.max_load(shape, load) for shape in shapes}
    best = max(shapes, key=lambda shape: (capacity[shape], shape.tp))
    replicas = gpu_budget // best.tp
    return PoolPlan(best, replicas, replicas * profile.power_w(best, load.scaled(1 / replicas)))
