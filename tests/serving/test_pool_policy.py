import math

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.domain import ClassLoad, InputClass, Load, Shape
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.pool_policy import least_power_plan, replicas_needed

PROFILE = RooflineProfile()
IDLE_W = PROFILE.gpu.idle_w


def load(rps: float, input_class: InputClass = InputClass.LONG) -> Load:
    tokens = {InputClass.SHORT: 128, InputClass.MEDIUM: 600, InputClass.LONG: 2000}[input_class]
    return Load({input_class: ClassLoad(rps, tokens, 200)})


def exhaustive(wanted: Load, budget: int) -> float:
    """Least power over every shape and every count that fits."""
    best = math.inf
    for tp in PROFILE.tps:
        for replicas in range(1, budget // tp + 1):
            share = wanted.scaled(1 / replicas)
            for freq in PROFILE.freqs_mhz:
                if PROFILE.meets_slo(Shape(tp, freq), share):
                    best = min(best, replicas * (PROFILE.power_w(Shape(tp, freq), share) - tp * IDLE_W))
    return best


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 12), st.sampled_from(list(InputClass)), st.sampled_from([4, 8, 16, 32]))
def test_a_plan_is_within_a_percent_of_trying_everything(rps: float, input_class: InputClass, budget: int) -> None:
    plan = least_power_plan(PROFILE, load(rps, input_class), budget, idle_gpu_w=IDLE_W)
    best = exhaustive(load(rps, input_class), budget)
    assert plan is not None
    assert plan.gpus <= budget
    holds = PROFILE.meets_slo(plan.shape, load(rps / plan.replicas, input_class))
    assert holds == (best < math.inf)
    if holds:
        assert plan.power_w <= best * 1.01


def test_a_plan_holds_the_slo_it_promises() -> None:
    plan = least_power_plan(PROFILE, load(6.0), 32, idle_gpu_w=IDLE_W)
    assert plan is not None
    assert PROFILE.meets_slo(plan.shape, load(6.0 / plan.replicas))


def test_more_load_never_takes_fewer_replicas_of_a_shape() -> None:
    needed = [replicas_needed(PROFILE, load(rps), Shape(8, 1980)) for rps in (1, 5, 10, 20, 40)]
    assert None not in needed
    assert needed == sorted(needed, key=lambda count: count or 0)


def test_too_small_a_budget_gives_its_most_capacity() -> None:
    plan = least_power_plan(PROFILE, load(100.0), 16)
    assert plan is not None
    assert not PROFILE.meets_slo(plan.shape, load(100.0 / plan.replicas))
    assert (plan.gpus, plan.shape.freq_mhz) == (16, 1980)


def test_no_gpu_no_plan() -> None:
    assert least_power_plan(PROFILE, load(1.0), 1) is None


def test_crediting_idle_power_changes_what_is_optimal_never_what_fits() -> None:
    for credited in (0.0, IDLE_W):
        plan = least_power_plan(PROFILE, load(3.0), 32, idle_gpu_w=credited)
        assert plan is not None
        assert PROFILE.meets_slo(plan.shape, load(3.0 / plan.replicas))
