"""What cannot be managed is refused before anything starts; needs no vLLM."""

import threading

import pytest

from control_plane.domain import PoolName
from serve_apps.ray_llm.managed_config import ConfigRefusedError, check_followed, check_one_loop, read_managed
from serve_apps.ray_llm.plan_reader import Counts, PlanReader
from wattray.serve import PlannedReplicas

TWO_KEYS = r"num_replicas to a number in both llm_configs\[0\]\.deployment_config and ingress_deployment_config"
AUTOSCALED = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}}
FIXED = {"num_replicas": 3}


@pytest.mark.parametrize(
    ("deployment", "ingress", "named"),
    [
        ({}, {}, r"llm_configs\[0\]\.deployment_config: num_replicas is missing"),
        (AUTOSCALED, FIXED, r"llm_configs\[0\]\.deployment_config: has an autoscaling_config"),
        (FIXED | AUTOSCALED, FIXED, r"llm_configs\[0\]\.deployment_config: has an autoscaling_config"),
        ({"num_replicas": "auto"}, FIXED, r"llm_configs\[0\]\.deployment_config: num_replicas is 'auto'"),
        (FIXED, {}, r"ingress_deployment_config: num_replicas is missing"),
        (FIXED, AUTOSCALED, r"ingress_deployment_config: has an autoscaling_config"),
    ],
)
def test_a_second_loop_is_refused_with_the_two_keys_to_set(deployment: dict, ingress: dict, named: str) -> None:
    with pytest.raises(ConfigRefusedError, match=named) as refused:
        check_one_loop(deployment, ingress)
    assert refused.match(TWO_KEYS)


def test_fixed_counts_are_taken_and_told() -> None:
    assert check_one_loop(FIXED, {"num_replicas": 1}) == 3


FOLLOWS = {"policy": {"policy_function": "wattray.serve:PlannedReplicas", "policy_kwargs": {"pool": "llm"}}}


@pytest.mark.parametrize("deployment", [{}, AUTOSCALED, {"num_replicas": "auto"}])
def test_a_metered_server_that_serve_scales_by_itself_is_refused(deployment: dict) -> None:
    with pytest.raises(ConfigRefusedError, match=r"Set num_replicas, or autoscaling_config\.policy"):
        check_followed(deployment)


@pytest.mark.parametrize("deployment", [FIXED, {"autoscaling_config": FOLLOWS}])
def test_a_fixed_count_and_our_own_policy_are_taken(deployment: dict) -> None:
    check_followed(deployment)


@pytest.mark.parametrize(
    ("section", "named"),
    [
        (None, r"experimental_configs\.wattray\.profile: missing"),
        ({}, r"experimental_configs\.wattray\.profile: missing"),
        ({"profile": "llama8b-h200", "pools": 3}, r"experimental_configs\.wattray.*pools"),
        ({"profile": "llama8b-h200", "colour": 1}, "colour"),
        ({"profile": "llama8b-h200", "pool": "other"}, r"wattray\.pool: 'other' is no pool; .*short-medium, long"),
    ],
)
def test_settings_that_are_missing_or_wrong_are_named(section: object, named: str) -> None:
    with pytest.raises(ConfigRefusedError, match=named):
        read_managed({} if section is None else {"wattray": section})


def test_gpus_are_real_and_only_recommended_to_unless_the_settings_say_otherwise() -> None:
    real = read_managed({"wattray": {"profile": "llama8b-h200"}}, gpus=6)
    assert (real.settings.gpu.driver, real.settings.gpu.control, real.settings.gpu.count) == ("nvml", "recommend", 6)
    assert real.pool == PoolName("short-medium")
    simulated = read_managed({"wattray": {"profile": "llama8b-h200", "gpu": {"driver": "simulated", "count": 2}}}, 6)
    assert (simulated.settings.gpu.control, simulated.settings.gpu.count) == ("act", 2)


@pytest.mark.parametrize(
    ("arguments", "named"), [({}, "policy_kwargs.pool: missing"), ({"pool": "a", "tp": 0}, "policy_kwargs.tp: 0")]
)
def test_a_policy_that_names_no_deployment_of_a_plan_is_refused(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PlannedReplicas(**arguments)


def test_a_plan_that_is_slow_or_away_leaves_the_counts_as_they_are() -> None:
    """The reader never waits: what it returns is the last answer."""
    now_s, asked, answer, done = [0.0], threading.Event(), threading.Event(), threading.Event()
    told: list[Counts | Exception] = [{(1, "combined"): 2}, RuntimeError("away"), {(1, "combined"): 5}]

    def ask() -> Counts:
        asked.set()
        answer.wait()
        answer.clear()
        done.set()
        reply = told.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    reader = PlanReader(ask, lambda: now_s[0])

    def next_answer() -> Counts:
        """What is told once the next question has been asked and answered."""
        asked.wait()
        asked.clear()
        answer.set()
        done.wait()
        done.clear()
        assert reader._asking is not None
        while not reader._asking.done():
            done.wait(0.001)
        now_s[0] += 1.0
        return reader.counts()

    assert reader.counts() == {}
    assert reader.counts() == {}
    assert next_answer() == {(1, "combined"): 2}
    assert next_answer() == {(1, "combined"): 2}
    assert next_answer() == {(1, "combined"): 5}
    answer.set()
