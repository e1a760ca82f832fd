"""Builds the Ray Serve applications. ``scaling`` changes how many replicas they have."""

from ray import serve
from ray.serve.config import RequestRouterConfig

from actors.runtime import Installation
from control_plane.domain import PoolName, Role
from serve_apps.naming import REPLICA_DEPLOYMENT, ROUTER_APP, pool_app
from serve_apps.replica import ModelReplica
from serve_apps.request_router import ChosenReplicaRouter
from serve_apps.router import Router

MAX_ONGOING_REQUESTS = 1000
"""Per replica; Serve's default of 5 would strangle continuous batching."""


def start_router(deployment: Installation) -> None:
    """Start Serve's HTTP side and the router application; returns when it answers."""
    http = deployment.settings.serve
    serve.start(proxy_location="HeadOnly", http_options={"host": http.host, "port": http.port})
    router = serve.deployment(
        Router,
        name="Router",
        num_replicas=1,
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2.0,
    )
    serve.run(router.bind(deployment), name=ROUTER_APP, route_prefix="/")


def deploy_pool(deployment: Installation, pool: PoolName, tp: int, role: Role, replicas: int) -> None:
    """Deploy the application of one pool, role and tensor parallelism with so many replicas, and do not wait for them.
    Draining is Serve's: a replica ends when its last stream has."""
    model = serve.deployment(
        ModelReplica,
        name=REPLICA_DEPLOYMENT,
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=deployment.settings.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": 0, "num_gpus": tp},
        request_router_config=RequestRouterConfig(request_router_class=ChosenReplicaRouter),
    )
    bound = model.bind(deployment, pool, tp, role)
    serve.run(bound, name=pool_app(pool, tp, role), route_prefix=None, external_scaler_enabled=True, blocking=False)
