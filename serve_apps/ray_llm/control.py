"""The control plane of a managed ray.serve.llm application: started by whichever of its replicas comes first."""

import hashlib

import ray

from actors import runtime
from actors.runtime import Installation
from control_plane.domain import Load, PoolName, Role
from control_plane.settings import Settings
from serve_apps.ray_llm.managed_config import FIELD

ANSWER_S = 30.0


def ensure_control_plane(settings: Settings) -> Installation:
    """Blocks for a second or two where nothing runs yet. Raises RuntimeError where a control plane with other settings
    runs on this Ray."""
    installation = installation_of(settings)
    running = running_settings()
    if running is None:
        runtime.start_control_plane(installation, Load(), counts_are_read)
        running = running_settings()
    if running != settings:
        message = f"a control plane with other settings than {FIELD} runs on this Ray; end it first: `wattray down`"
        raise RuntimeError(message)
    return installation


def installation_of(settings: Settings) -> Installation:
    """The same in every process of this Ray."""
    session = ray.get_runtime_context().get_session_name()
    return Installation(settings, f"wattray-llm-{hashlib.sha256(session.encode()).hexdigest()[:12]}", "")


def running_settings() -> Settings | None:
    """Of the control plane that runs on this Ray; None where there is none."""
    try:
        manager = runtime.actor(runtime.CLUSTER_MANAGER)
    except ValueError:
        return None
    settings: Settings = ray.get(manager.settings.remote(), timeout=ANSWER_S)
    return settings


def counts_are_read(deployment: Installation, pool: PoolName, tp: int, role: Role, replicas: int) -> None:
    """Nothing to do for a pool manager that wants another count: the autoscaling policy reads it from there."""
