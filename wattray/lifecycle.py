"""Bring the control plane up on a running Ray or on a head of its own, and take it down again."""

import logging
import secrets
import shutil
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve

from actors import runtime
from actors.ray_address import running_ray
from actors.runtime import Deployment
from control_plane.domain import Load
from control_plane.settings import Settings
from serve_apps import app
from serve_apps.naming import ROUTER_APP, pool_app
from serve_apps.scaling import set_replicas
from wattray import ray_head
from wattray.errors import WattrayError
from wattray.ray_head import Ports, Running

READY_S = 90.0

Say = Callable[[str], None]


def up(
    settings: Settings, ports: Ports, first_load: Load, address: str | None, say: Say, *, own_head: bool = False
) -> Running:
    """Start everything and return when the router answers and every pool has a replica.

    ``address`` attaches to that Ray ("auto": the one that runs here); None attaches to one that runs here and
    starts a head otherwise; ``own_head`` never attaches. Raises WattrayError before anything has started where it
    cannot work, and ends what it started where it fails later.
    """
    if ray_head.load() is not None:
        raise WattrayError("wattray is up already; `wattray status` shows it, `wattray down` ends it")
    run_dir = f"wattray-run-{secrets.token_hex(4)}"
    folder = Path(tempfile.gettempdir()) / run_dir
    head_pid = None
    found = running_ray() if address in (None, "auto") else address
    if found is None and address is not None:
        raise WattrayError(f"--address {address}: no Ray runs here; start one, or leave --address out")
    if found is not None and own_head:
        raise WattrayError(f"a Ray cluster runs at {found}; the demo starts its own: `ray stop` that one first")
    if found is None:
        ray_head.check_free(settings.serve.host, settings.serve.port, "the router", "--port")
        folder.mkdir(mode=0o700)
        say(f"starting Ray with {settings.gpu.count} simulated GPUs")
        head = ray_head.start(settings.gpu.count, ports, folder / "ray-head.log")
        head_pid, found = head.pid, f"127.0.0.1:{ports.ray}"
        dashboard_url, metrics_port = f"http://127.0.0.1:{ports.dashboard}", ports.metrics
    running = None
    try:
        joined_url = connect_ray(found)
        _check_cluster(settings)
        if head_pid is None:
            if not _serve_runs():
                ray_head.check_free(settings.serve.host, settings.serve.port, "the router", "--port")
            found = ray.get_runtime_context().gcs_address
            dashboard_url, metrics_port = joined_url, None
            if not dashboard_url:
                raise WattrayError("this Ray runs without its dashboard, which scaling needs: --include-dashboard=true")
        router_url = f"http://{settings.serve.host}:{settings.serve.port}"
        running = Running(found, dashboard_url, metrics_port, run_dir, router_url, head_pid)
        ray_head.save(running)
        deployment = Deployment(settings, run_dir, dashboard_url)
        say("starting the router")
        app.start_router(deployment)
        _check_router(router_url)
        say("starting the control actors")
        runtime.start_control_plane(deployment, first_load, set_replicas)
        say("starting the first replicas")
        _wait_for_replicas(settings)
        return running
    except BaseException:
        if running is not None:
            down(running, say)
        elif head_pid is not None:
            ray.shutdown()
            ray_head.end(head_pid)
            shutil.rmtree(folder, ignore_errors=True)
        raise


def down(running: Running, say: Say) -> None:
    """Reset every clock, end our applications and actors, and the head where it is ours. Safe to repeat; a second
    Ctrl-C does not cut it short."""
    with not_interrupted():
        _down(running, say)


def _down(running: Running, say: Say) -> None:
    try:
        connect_ray(running.address)
        _reset_clocks(say)
        if running.head_pid is None:
            _end_our_share()
    except (ConnectionError, ray.exceptions.RayError) as error:
        say(f"Ray does not answer ({error}); ending what is left")
    finally:
        ray.shutdown()
        if running.head_pid is not None:
            say("ending Ray")
            ray_head.end(running.head_pid)
        shutil.rmtree(Path(tempfile.gettempdir()) / running.run_dir, ignore_errors=True)
        ray_head.forget()


@contextmanager
def not_interrupted() -> Iterator[None]:
    """Half a take-down would leave processes and lowered clocks behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def connect_ray(address: str) -> str:
    """Join a running Ray as a driver and return its dashboard's URL ("" without one); joining twice is one joining.
    Raises ConnectionError where none answers."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    context = ray.init(
        address=address,
        namespace=runtime.NAMESPACE,
        logging_level="warning",
        log_to_driver=False,
        ignore_reinit_error=True,
    )
    url = context.dashboard_url
    return f"http://{url}" if url else ""


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
    """Until every pool's manager has heard from a replica."""
    patience_s = READY_S + (0.0 if settings.serve.warm_start else settings.sharding.startup_s)
    deadline_s = time.monotonic() + patience_s
    waiting = {pool.pool for pool in settings.pools}
    while waiting:
        if time.monotonic() > deadline_s:
            raise WattrayError(f"no replica of pools {sorted(waiting)} came up within {patience_s:.0f} s")
        time.sleep(0.3)
        for pool in list(waiting):
            manager = runtime.actor(runtime.pool_manager_name(pool))
            if ray.get(manager.status.remote(), timeout=30).replicas:
                waiting.discard(pool)


def _reset_clocks(say: Say) -> None:
    for name in runtime.control_actor_names():
        if name.startswith(runtime.pool_manager_name("")):  # type: ignore[arg-type]
            _ask(name, "pause", say)
    for name in runtime.agent_names():
        _ask(name, "reset_all", say)


def _ask(name: str, method: str, say: Say) -> None:
    try:
        ray.get(getattr(runtime.actor(name), method).remote(), timeout=5)
    except (ValueError, ray.exceptions.RayError) as error:
        say(f"{name} does not answer to {method}: {type(error).__name__}")


def _end_our_share() -> None:
    """On a Ray that is not ours: our applications and actors, nothing else."""
    manager = runtime.actor(runtime.CLUSTER_MANAGER)
    settings: Settings = ray.get(manager.settings.remote(), timeout=15)
    tps = runtime.planning_profile(settings).tps
    ours = {ROUTER_APP} | {pool_app(pool.pool, tp) for pool in settings.pools for tp in tps}
    for name in ours & set(serve.status().applications):
        serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()
    for name in runtime.control_actor_names():
        ray.kill(runtime.actor(name), no_restart=True)
    runtime.free_training_gpus()
