"""Sets how many replicas the pools' applications have, without Ray Serve, whose import would make a pool manager 60 MB
larger: scaling is a call to the dashboard, and a first deployment a task in a process of its own."""

import json
import os
import urllib.error
import urllib.request

import ray

from actors.ray_token import ray_token_headers
from actors.runtime import Installation
from control_plane.domain import PoolName, Role
from serve_apps.naming import REPLICA_DEPLOYMENT, pool_app

DEPLOY_S = 60.0
NICENESS = 10
"""A first deployment has time; the requests beside it have not."""
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Never through a proxy that the environment names: the dashboard is inside the cluster."""


def set_replicas(deployment: Installation, pool: PoolName, tp: int, role: Role, replicas: int) -> None:
    """So many replicas of this tensor parallelism and role in this pool; the application is deployed at first need.
    Asking again for the same changes nothing. Raises RuntimeError where Serve refuses, OSError where the dashboard is
    away."""
    if not _scale(deployment.dashboard_url, pool_app(pool, tp, role), replicas) and replicas > 0:
        deploying = ray.remote(num_cpus=0, max_calls=1)(_deploy).remote(deployment, pool, tp, role, replicas)
        ray.get(deploying, timeout=DEPLOY_S)


def _scale(dashboard_url: str, app: str, replicas: int) -> bool:
    """False where there is no such application."""
    url = f"{dashboard_url}/api/v1/applications/{app}/deployments/{REPLICA_DEPLOYMENT}/scale"
    body = json.dumps({"target_num_replicas": replicas}).encode()
    headers = {"Content-Type": "application/json", **ray_token_headers()}
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        with _direct.open(request, timeout=10) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        told = error.read().decode(errors="replace")[:300]
        if error.code == 404:
            return False
        raise RuntimeError(f"Serve refused {replicas} replicas of {app}: {told}") from None
    return True


def _deploy(deployment: Installation, pool: PoolName, tp: int, role: Role, replicas: int) -> None:
    os.nice(NICENESS)
    from serve_apps.app import deploy_pool

    deploy_pool(deployment, pool, tp, role, replicas)
