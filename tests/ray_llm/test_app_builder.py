"""What ``wattray.serve:build_openai_app`` builds; needs ``ray[llm]`` (``make test-ray-llm``) and deploys nothing."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("ray.serve.llm needs vLLM, which is not installed here: make test-ray-llm", allow_module_level=True)

import ray

from serve_apps.ray_llm.managed_config import ConfigRefusedError
from wattray.serve import build_openai_app

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True, scope="module")
def connected(own_temp: Path) -> Iterator[None]:
    """Ray's builder asks for the runtime environment of the process, and would join any Ray of this host for that."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


MANAGED = {"profile": "llama2-70b-h100", "gpu": {"driver": "simulated"}}


def arguments(**model: Any) -> dict[str, Any]:
    llm = {
        "model_loading_config": {"model_id": "llama2-70b"},
        "engine_kwargs": {"tensor_parallel_size": 4},
        "deployment_config": {"num_replicas": 2},
        "experimental_configs": {"wattray": MANAGED},
        **model,
    }
    return {"llm_configs": [llm], "ingress_deployment_config": {"num_replicas": 1}}


def test_every_pool_and_parallelism_is_a_deployment_that_follows_the_plan_within_the_gpus() -> None:
    """Two replicas of TP 4 are eight GPUs."""
    app = build_openai_app(arguments())
    assert app._bound_deployment._deployment_config.autoscaling_config is None
    built = {}
    for name, server in app._bound_deployment.init_kwargs["deployments"].items():
        deployment = server._bound_deployment
        scaling = deployment._deployment_config.autoscaling_config
        tp = deployment.init_kwargs["llm_config"].engine_kwargs["tensor_parallel_size"]
        built[name] = (tp, scaling.min_replicas, scaling.max_replicas)
        assert scaling.policy.policy_function == "wattray.serve:PlannedReplicas"
        assert scaling.policy.policy_kwargs["tp"] == tp
    assert built == {
        f"wattray:llama2-70b--{pool}-tp{tp}": (tp, 0, 8 // tp) for pool in ("short-medium", "long") for tp in (2, 4, 8)
    }


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"deployment_config": {}}, "deployment_config: num_replicas is missing"),
        ({"deployment_config": {"num_replicas": 2, "request_router_config": {}}}, "request_router_config"),
        ({"server_cls": "ray.serve.llm:LLMServer"}, "LLMServer is not metered"),
        ({"experimental_configs": {}}, "profile: missing"),
        ({"engine_kwargs": {}, "deployment_config": {"num_replicas": 2}}, "2 GPUs are too few for wattray's 2 pools"),
    ],
)
def test_what_cannot_be_managed_is_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigRefusedError, match=named):
        build_openai_app(arguments(**changed))
    two = arguments()
    two["llm_configs"].append({**two["llm_configs"][0], "model_loading_config": {"model_id": "other"}})
    with pytest.raises(ConfigRefusedError, match="2 models"):
        build_openai_app(two)
