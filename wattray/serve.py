"""wattray in applications of ``ray.serve.llm``, in three depths; docs/ray_serve_llm.md shows the YAML of each.

* ``PlannedReplicas``: an autoscaling policy for any Serve YAML; replica counts come from wattray's planner.
* ``MeteredLLMServer``: for ``LLMConfig.server_cls``; energy per request, reports, the clock governor.
* ``build_openai_app``: in place of ``ray.serve.llm:build_openai_app``, with its arguments; pools, TP choice and
  wattray's router too.

Names are imported when they are asked for. All but the first need ``ray[llm]``: ImportError says so in one line.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve_apps.ray_llm.app_builder import build_openai_app
    from serve_apps.ray_llm.metered_server import MeteredLLMServer
    from serve_apps.ray_llm.planned_replicas import PlannedReplicas
    from serve_apps.ray_llm.policy_router import PolicyReplicaRouter

__all__ = ["MeteredLLMServer", "PlannedReplicas", "PolicyReplicaRouter", "build_openai_app"]

_HOMES = {
    "PlannedReplicas": "serve_apps.ray_llm.planned_replicas",
    "PolicyReplicaRouter": "serve_apps.ray_llm.policy_router",
    "MeteredLLMServer": "serve_apps.ray_llm.metered_server",
    "build_openai_app": "serve_apps.ray_llm.app_builder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_HOMES[name]), name)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ImportError(f"wattray.serve.{name} needs ray.serve.llm: pip install 'ray[llm]' ({reason})") from None
