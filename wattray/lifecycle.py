"""Bring the control plane up on a running Ray or on a head of its own."""

import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import ray

from actors import runtime
from actors.ray_address import running_ray
from actors.runtime import Installation
from control_plane.domain import Load, ReplicaState
from control_plane.serving.policies.registry import UnknownPolicyError
from control_plane.serving.policy import GpuBudgetError, NoHandOverError
from control_plane.settings import Settings
from serve_apps import app
from serve_apps.engines.factory import EngineMissingError, check_engine
from serve_apps.engines.protocol import EngineError
from serve_apps.scaling import set_replicas
from serve_apps.status_page import start_status_page
from wattray import ray_auth, ray_head, run_folder, running
from wattray.errors import WattrayError
from wattray.exposure import check_exposure
from wattray.ray_head import Ports
from wattray.ray_session import connect_ray
from wattray.running import Running
from wattray.take_down import apps_of, clean_up_after_dead_runs, interruptible, take_down

READY_S = 90.0

Say = Callable[[str], None]


def up(
    settings: Settings, ports: Ports, first_load: Load, address: str | None, say: Say, *, own_head: bool = False
) -> Running:
    """Start everything and return when the router answers and every pool has a replica.

    ``address`` attaches to that Ray ("auto": the one that runs here); None attaches to one that runs here and
    starts a head otherwise; ``own_head`` never attaches. Raises WattrayError before anything has started where it
    cannot work, and ends what it started where it fails later: the error that is raised is the first one.
    """
    _check_plan(settings)
    if settings.serve.admin_port is not None:
        ray_head.check_free("127.0.0.1", settings.serve.admin_port, "the status page", "serve.admin_port")
    return _up(settings, ports, address, say, own_head, partial(_start_apps, first_load=first_load))


def up_for_training(settings: Settings, ports: Ports, say: Say) -> Running:
    """As ``up``, with nothing that serves: agents and planner, on the Ray that runs here or on a head of its own."""
    return _up(settings, ports, None, say, False, _start_training)


def _up(
    settings: Settings, ports: Ports, address: str | None, say: Say, own_head: bool, start_apps: "_StartApps"
) -> Running:
    clean_up_after_dead_runs(say)
    if running.load() is not None:
        raise WattrayError("wattray is up already; `wattray status` shows it, `wattray down` ends it")
    ray_auth.use_token_if_there_is_one()
    found = running_ray() if address in (None, "auto") else address
    if found is None and address is not None:
        raise WattrayError(f"--address {address}: no Ray runs here; start one, or leave --address out")
    if found is not None and own_head:
        raise WattrayError(f"a Ray cluster runs at {found}; the demo starts its own: `ray stop` that one first")
    secured = ray_auth.secure_own_head() if found is None else ray_auth.mode() == "token"
    check_exposure(settings, secured)
    begun: list[Running] = []

    def began(state: Running) -> None:
        running.save(state)
        begun[:] = [state]

    try:
        with interruptible():
            if found is None:
                joined = _start_head(settings, ports, say, began)
            else:
                joined = _join(settings, found, say)
                began(joined)
            return start_apps(joined, settings, say, began)
    except BaseException:
        for state in begun:
            # What fails while taking down is told, not raised: the first error is what the user must see.
            take_down(state, say)
        raise


def _start_head(settings: Settings, ports: Ports, say: Say, began: Callable[[Running], None]) -> Running:
    ray_head.check_free(settings.serve.host, settings.serve.port, "the router", "--port")
    run = run_folder.make()
    state = Running(
        address=f"127.0.0.1:{ports.ray}",
        dashboard_url=f"http://127.0.0.1:{ports.dashboard}",
        metrics_port=ports.metrics,
        run_dir=run,
        router_url=_router_url(settings),
    )
    say(f"starting Ray with {settings.gpu.count} GPUs")
    try:
        ray_head.start(
            settings.gpu.count,
            ports,
            run_folder.path(run) / "ray-head.log",
            run,
            lambda head: began(state.model_copy(update={"head": head})),
        )
    except BaseException:
        with suppress(WattrayError):
            ray_head.end_run(run)
            run_folder.remove(run)
            running.forget()
        raise
    connect_ray(state.address)
    recorded = running.load()
    if recorded is None:
        raise WattrayError("the Ray head has ended again just after it started")
    return recorded


def _join(settings: Settings, address: str, say: Say) -> Running:
    say(f"joining the Ray at {address}")
    try:
        dashboard_url = connect_ray(address)
    except ConnectionError as error:
        raise WattrayError(f"no Ray answers at {address}, or it refuses your token: {error}") from None
    _check_cluster(settings)
    if not dashboard_url:
        raise WattrayError("this Ray runs without its dashboard, which scaling needs: --include-dashboard=true")
    serve_ran = _serve_runs()
    if not serve_ran:
        ray_head.check_free(settings.serve.host, settings.serve.port, "the router", "--port")
    taken = sorted(apps_of(settings) & _apps_in_use())
    if taken:
        raise WattrayError(f"this Ray serves applications of the same names already: {', '.join(taken)}")
    return Running(
        address=ray.get_runtime_context().gcs_address,
        dashboard_url=dashboard_url,
        run_dir=run_folder.make(),
        router_url=_router_url(settings),
        serve_ran=serve_ran,
    )


_StartApps = Callable[[Running, Settings, Say, Callable[[Running], None]], Running]


def _start_training(joined: Running, settings: Settings, say: Say, began: Callable[[Running], None]) -> Running:
    del began
    if joined.head is not None:
        _check_cluster(settings)
    say("starting the planner")
    runtime.start_training_plane(Installation(settings, joined.run_dir or "", joined.dashboard_url))
    return joined


def _start_apps(
    joined: Running, settings: Settings, say: Say, began: Callable[[Running], None], first_load: Load
) -> Running:
    if joined.head is not None:
        _check_cluster(settings)
    state = joined.model_copy(update={"apps": tuple(sorted(apps_of(settings)))})
    began(state)
    deployment = Installation(settings, state.run_dir or "", state.dashboard_url)
    say("starting the router")
    app.start_router(deployment)
    _check_router(state.router_url)
    say("starting the control actors")
    runtime.start_control_plane(deployment, first_load, set_replicas)
    state = _start_page(deployment, state)
    began(state)
    say("starting the first replicas")
    _wait_for_replicas(settings)
    return state


def _start_page(deployment: Installation, state: Running) -> Running:
    serving = deployment.settings.serve
    port = serving.admin_port or ray_head.free_port_at_best(serving.port + 1)
    page = start_status_page(deployment, port)
    try:
        ray.get(page.ready.remote(), timeout=READY_S)
    except ray.exceptions.RayError as error:
        raise WattrayError(f"the status page does not start on port {port}: {error}") from None
    return state.model_copy(update={"status_url": f"http://127.0.0.1:{port}"})


def _check_plan(settings: Settings) -> None:
    try:
        check_engine(settings)
    except (EngineMissingError, EngineError) as error:
        raise WattrayError(str(error)) from None
    try:
        Installation(settings, "", "").policy()
    except (UnknownPolicyError, GpuBudgetError, NoHandOverError) as error:
        raise WattrayError(f"policy {settings.policy}, gpu.count {settings.gpu.count}: {error}") from None


def _router_url(settings: Settings) -> str:
    return f"http://{settings.serve.host}:{settings.serve.port}"


def _apps_in_use() -> set[str]:
    from ray import serve

    return set(serve.status().applications) if _serve_runs() else set()


def _check_cluster(settings: Settings) -> None:
    have = int(ray.cluster_resources().get("GPU", 0))
    if have < settings.gpu.count:
        raise WattrayError(
            f"gpu.count: {settings.gpu.count} GPUs are needed and this Ray cluster has {have}; "
            f"lower gpu.count or add nodes (for simulated GPUs: `ray start --num-gpus={settings.gpu.count}`)"
        )
    if runtime.CLUSTER_MANAGER in runtime.control_actor_names():
        raise WattrayError("this Ray has a wattray control plane already; `wattray down` ends it")


def _serve_runs() -> bool:
    """Whether this Ray runs Serve already: then its HTTP proxy is ours too."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return any(entry["name"] == "SERVE_CONTROLLER_ACTOR" for entry in actors)


def _check_router(router_url: str) -> None:
    try:
        with urllib.request.urlopen(f"{router_url}/healthz", timeout=10):
            return
    except OSError as error:
        raise WattrayError(
            f"the router does not answer at {router_url} ({error}); where this Ray runs Serve already, "
            "give serve.host and serve.port of its HTTP proxy"
        ) from None


def _wait_for_replicas(settings: Settings) -> None:
    """Until every pool's manager has heard from a replica that is ready."""
    at_once = settings.serve.warm_start and settings.serve.engine == "simulated"
    patience_s = READY_S + (0.0 if at_once else settings.sharding.startup_s)
    deadline_s = time.monotonic() + patience_s
    waiting = set(Installation(settings, "", "").pool_names)
    while waiting:
        if time.monotonic() > deadline_s:
            raise WattrayError(f"no replica of pools {sorted(waiting)} came up within {patience_s:.0f} s")
        time.sleep(0.3)
        for pool in list(waiting):
            manager = runtime.actor(runtime.pool_manager_name(pool))
            replicas = ray.get(manager.status.remote(), timeout=30).replicas
            if any(replica.state is ReplicaState.READY for replica in replicas):
                waiting.discard(pool)
