"""What an LLMConfig says about wattray, checked before anything starts: settings, pool, and that no second loop scales.

The settings are in ``experimental_configs.wattray``, which ray.serve.llm passes by: one file serves before and after.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.domain import PoolName
from control_plane.settings import Settings, SettingsError, parse_settings

SECTION = "wattray"
FIELD = f"experimental_configs.{SECTION}"
POOL = "pool"
"""The pool that a deployment's replicas belong to, beside the settings; the builder sets it."""


class ConfigRefusedError(ValueError):
    """The configuration cannot be managed; the message names the field and the fix."""


@dataclass(frozen=True, slots=True)
class Managed:
    settings: Settings
    pool: PoolName
    """The first one where the configuration names none."""


def read_managed(experimental: Mapping[str, Any], gpus: int | None = None) -> Managed:
    """``gpus``: the default of ``gpu.count``. GPUs are real unless the settings say otherwise, and then their clocks
    are only recommended. Raises ConfigRefusedError."""
    given = experimental.get(SECTION)
    if not isinstance(given, Mapping) or "profile" not in given:
        raise ConfigRefusedError(
            f"{FIELD}.profile: missing; plans need the energy profile of the model on its GPUs, e.g. "
            f"{SECTION}: {{profile: llama8b-h200}} (`wattray profile list` shows those that there are)"
        )
    values = {name: value for name, value in given.items() if name != POOL}
    gpu = values.get("gpu") or {}
    if isinstance(gpu, Mapping):
        counted = {} if gpus is None else {"count": gpus}
        values["gpu"] = {"driver": "nvml", **counted, **gpu}
    try:
        settings = parse_settings(values, FIELD)
    except SettingsError as error:
        raise ConfigRefusedError(str(error)) from None
    names = [pool.name for pool in settings.pools]
    pool = given.get(POOL, names[0])
    if pool not in names:
        raise ConfigRefusedError(f"{FIELD}.{POOL}: {pool!r} is no pool; the settings have {', '.join(names)}")
    return Managed(settings, PoolName(pool))


def check_followed(deployment: Mapping[str, Any]) -> None:
    """For a server that Ray's own builder deploys: raises ConfigRefusedError where Serve would scale it by a loop of
    its own while our planner counts on its replicas."""
    scaling = deployment.get("autoscaling_config")
    policy = {} if scaling is None else _get(scaling, "policy") or {}
    function = str(_get(policy, "policy_function") or "")
    if scaling is None and isinstance(deployment.get("num_replicas"), int):
        return
    if not function.endswith("PlannedReplicas"):
        raise ConfigRefusedError(
            "deployment_config: Ray Serve would scale this deployment by a loop of its own. Set num_replicas, or "
            "autoscaling_config.policy: {policy_function: wattray.serve:PlannedReplicas, policy_kwargs: {pool: POOL}}"
        )


def _get(part: Any, name: str) -> Any:
    """Of a mapping or of an object of Ray's."""
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def check_one_loop(deployment: Mapping[str, Any], ingress: Mapping[str, Any]) -> int:
    """The replicas that the configuration asks for. ray.serve.llm adds an autoscaling_config of its own wherever
    num_replicas is missing, and two loops would then move the same replicas: raises ConfigRefusedError, naming the two
    keys."""
    for name, options in (("llm_configs[0].deployment_config", deployment), ("ingress_deployment_config", ingress)):
        if options.get("autoscaling_config") is not None:
            found = "has an autoscaling_config, whose loop would fight with wattray's; leave it out"
        elif not isinstance(options.get("num_replicas"), int):
            told = "missing" if "num_replicas" not in options else f"{options['num_replicas']!r}"
            found = f"num_replicas is {told}, so that Ray Serve would scale it itself"
        else:
            continue
        raise ConfigRefusedError(
            f"{name}: {found}. Set num_replicas to a number in both llm_configs[0].deployment_config and "
            "ingress_deployment_config: the first says how many replicas' GPUs wattray may use, and its planner moves "
            "the replicas within them"
        )
    return int(deployment["num_replicas"])
