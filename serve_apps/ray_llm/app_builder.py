"""Builds a ray.serve.llm application that wattray manages, from the arguments of ``ray.serve.llm:build_openai_app``.

Every pool and tensor parallelism is one server deployment whose count follows our planner; in front of them is one
ingress with our router. All of it is one Serve application, with Ray's own server, ingress and engine in it.
"""

from typing import Any

from ray import serve
from ray.llm._internal.serve.constants import RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING
from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
from ray.serve.config import RequestRouterConfig
from ray.serve.deployment import Application
from ray.serve.llm import LLMServingArgs, build_llm_deployment
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

from actors.runtime import Installation, first_budgets, planning_profile
from control_plane.actions import SetReplicas
from control_plane.domain import Load, PoolName, Role
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.hosting import PoolHost
from control_plane.serving.load_forecast import Forecast
from control_plane.serving.policies.registry import UnknownPolicyError
from control_plane.serving.policy import GpuBudgetError, NoHandOverError, Policy
from control_plane.settings import Settings
from serve_apps.ray_llm.managed_config import FIELD, POOL, SECTION, ConfigRefusedError, check_one_loop, read_managed
from serve_apps.ray_llm.metered_server import MeteredLLMServer
from serve_apps.ray_llm.pooled_calls import PooledReplicaRouter
from serve_apps.ray_llm.pooled_ingress import PooledIngress
from serve_apps.replica_directory import AppSpeed

POLICY = "wattray.serve:PlannedReplicas"
"""By its public name: Serve pickles a policy's module by value, and that one holds nothing."""


def build_openai_app(llm_serving_args: Any) -> Application:
    """Raises ConfigRefusedError, a ValueError, before anything is deployed."""
    args = LLMServingArgs.model_validate(llm_serving_args)
    check_shape(args)
    config = args.llm_configs[0]
    replicas = check_one_loop(config.deployment_config, args.ingress_deployment_config)
    engine = config.engine_kwargs
    gpus = replicas * engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    settings = read_managed(config.experimental_configs, gpus).settings
    policy, profile = policy_of(settings), planning_profile(settings)
    first = first_counts(policy, settings)
    deployments: dict[str, Application] = {}
    speeds: dict[str, AppSpeed] = {}
    for pool in policy.pools:
        for tp in sorted(profile.tps):
            if tp <= settings.serving_gpus:
                count = first.get((pool.pool, tp), 0)
                app = build_llm_deployment(for_pool(config, settings, pool.pool, tp, count), name_prefix="wattray:")
                times, top_mhz = profile.times(tp), profile.max_freq_mhz
                name = app._bound_deployment.name
                deployments[name] = app
                speeds[name] = AppSpeed(
                    pool.pool, times.token_ps[top_mhz] / PS_PER_S, times.base_ps[top_mhz] / PS_PER_S
                )
    model_id = config.model_id
    options = PooledIngress.get_deployment_options([config]) | args.ingress_deployment_config
    options.pop("autoscaling_config", None)
    return serve.deployment(make_fastapi_ingress(PooledIngress), **options).bind(
        llm_deployments={model_id: next(iter(deployments.values()))},
        model_cards={model_id: to_model_metadata(model_id, config)},
        settings=settings,
        deployments=deployments,
        speeds=speeds,
        model_source=config.model_loading_config.model_source,
    )


def check_shape(args: Any) -> None:
    """Raises ConfigRefusedError for what Ray's builder takes and this one does not."""
    if len(args.llm_configs) > 1:
        raise ConfigRefusedError(
            f"llm_configs: {len(args.llm_configs)} models; a control plane plans for one, so name one model here and "
            "serve the others with ray.serve.llm:build_openai_app"
        )
    if RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING:
        raise ConfigRefusedError("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING: requests would pass our router by; unset it")
    ingress = args.ingress_cls_config
    if ingress.ingress_cls.__name__ != OpenAiIngress.__name__ or ingress.ingress_extra_kwargs:
        raise ConfigRefusedError("ingress_cls_config: wattray's router is the ingress here; leave it out")
    config = args.llm_configs[0]
    if config.deployment_config.get("request_router_config") is not None:
        raise ConfigRefusedError(
            "llm_configs[0].deployment_config.request_router_config: wattray's router chooses replicas; leave it out"
        )
    own = config.server_cls
    if own is not None and not issubclass(own, MeteredLLMServer):
        raise ConfigRefusedError(
            f"llm_configs[0].server_cls: {own.__name__} is not metered; derive it from wattray.serve.MeteredLLMServer"
        )


def policy_of(settings: Settings) -> Policy:
    try:
        return Installation(settings, "", "").policy()
    except (UnknownPolicyError, GpuBudgetError, NoHandOverError) as error:
        raise ConfigRefusedError(
            f"{FIELD}: policy {settings.policy}, gpu.count {settings.gpu.count}: {error}"
        ) from None


def first_counts(policy: Policy, settings: Settings) -> dict[tuple[PoolName, int], int]:
    """Replicas by pool and tensor parallelism before there is any load: what the pools' managers will order at once."""
    counts = {}
    for pool, gpus in first_budgets(policy, settings.serving_gpus, Load()).items():
        for action in PoolHost(policy, pool).step(0.0, gpus, Forecast(), ()).actions:
            if isinstance(action, SetReplicas) and action.role is Role.COMBINED:
                counts[(pool, action.tp)] = action.replicas
    return counts


def for_pool(config: Any, settings: Settings, pool: PoolName, tp: int, replicas: int) -> Any:
    """The model's configuration for one pool and tensor parallelism, its count following the plan."""
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    scaled = {
        "min_replicas": 0,
        "initial_replicas": replicas,
        "max_replicas": settings.serving_gpus // tp,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "policy": {"policy_function": POLICY, "policy_kwargs": {"pool": pool, "tp": tp}},
    }
    base = config.deployment_config.get("name", config.model_id.replace("/", "--").replace(".", "_"))
    deployment = {"graceful_shutdown_timeout_s": settings.drain_s, **config.deployment_config}
    deployment.pop("num_replicas")
    deployment |= {
        "name": f"{base}--{pool}-tp{tp}",
        "autoscaling_config": scaled,
        "request_router_config": RequestRouterConfig(request_router_class=PooledReplicaRouter),
    }
    section = settings.model_dump(mode="json", exclude_defaults=True) | {"profile": settings.profile, POOL: pool}
    section["gpu"] = settings.gpu.model_dump(mode="json")
    return type(config)(
        **fields
        | {
            "server_cls": config.server_cls or MeteredLLMServer,
            "engine_kwargs": {**config.engine_kwargs, "tensor_parallel_size": tp},
            "deployment_config": deployment,
            "experimental_configs": {**config.experimental_configs, SECTION: section},
        }
    )
