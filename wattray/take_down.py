"""Take the control plane down: clocks first, then what is ours. Each part is tried whatever became of the others."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import ray
from ray import serve

from actors import runtime
from actors.gpu.restore import restore_defaults
from control_plane.settings import Settings
from serve_apps.naming import app_names
from wattray import ray_auth, ray_head, run_folder, running
from wattray.errors import WattrayError
from wattray.ray_session import connect_ray
from wattray.running import Running

Say = Callable[[str], None]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def take_down(state: Running, say: Say) -> None:
    """Reset every clock, end our applications and actors, and the head where it is ours. Safe to repeat; signals do not
    cut it short. What fails on the way is told through ``say`` and does not keep the rest from being done."""
    with not_interrupted():
        _attempt(say, "ending the control plane through Ray", lambda: _through_ray(state, say))
        ray.shutdown()
        if state.run_dir is not None:
            run = state.run_dir
            if state.head is not None:
                head = state.head
                say("ending Ray")
                _attempt(say, "ending the Ray head", lambda: ray_head.end(head))
                _attempt(say, "ending what is left of it", lambda: ray_head.end_run(run))
            _attempt(say, "resetting clocks without Ray", lambda: _restore(run, say))
            _attempt(say, "removing the run folder", lambda: run_folder.remove(run))
        running.forget()


def clean_up_after_dead_runs(say: Say) -> None:
    """What heads of this user that have died left behind: lowered clocks, processes, run folders, the record."""
    recorded = running.load()
    if recorded is not None and not running.is_up(recorded):
        say("cleaning up after a Ray head that has died")
        take_down(recorded, say)


def _through_ray(state: Running, say: Say) -> None:
    ray_auth.use_token_if_there_is_one()
    if state.head is not None and state.head.process() is None:
        return
    connect_ray(state.address)
    _reset_clocks(say)
    if state.head is None:
        _end_our_share(state, say)


def _restore(run: str, say: Say) -> None:
    try:
        folder = run_folder.path(run)
    except FileNotFoundError:
        return
    for told in restore_defaults(folder):
        say(told)


def _reset_clocks(say: Say) -> None:
    for name in runtime.control_actor_names():
        if name.startswith("pool_manager:"):
            _ask(name, "pause", say)
    for name in runtime.agent_names():
        _ask(name, "reset_all", say)


def _ask(name: str, method: str, say: Say) -> None:
    try:
        ray.get(getattr(runtime.actor(name), method).remote(), timeout=5)
    except (ValueError, ray.exceptions.RayError) as error:
        say(f"{name} does not answer to {method}: {type(error).__name__}")


def _end_our_share(state: Running, say: Say) -> None:
    """On a Ray that is not ours: our applications and actors, nothing else."""
    _attempt(say, "ending our Serve applications", lambda: _end_apps(state))
    for name in runtime.control_actor_names():
        _attempt(say, f"ending {name}", partial(_kill_actor, name))
    _attempt(say, "freeing the training GPUs", runtime.free_training_gpus)


def _kill_actor(name: str) -> None:
    ray.kill(runtime.actor(name), no_restart=True)


def _end_apps(state: Running) -> None:
    ours = set(state.apps) or apps_of(ray.get(runtime.actor(runtime.CLUSTER_MANAGER).settings.remote(), timeout=15))
    for name in ours & set(serve.status().applications):
        serve.delete(name)
    if ours and not state.serve_ran and not serve.status().applications:
        serve.shutdown()


def apps_of(settings: Settings) -> set[str]:
    """Every Serve application that a control plane with these settings may have."""
    installation = runtime.Installation(settings, "", "")
    return app_names(installation.pool_names, tuple(installation.profile.tps))


def _attempt(say: Say, what: str, do: Callable[[], object]) -> None:
    try:
        do()
    except (WattrayError, ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        say(f"{what} failed, going on with the rest: {error}")


@contextmanager
def not_interrupted() -> Iterator[None]:
    """Half a take-down would leave processes and lowered clocks behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ray's own handler of SIGTERM sets an alarm that would abort this process three seconds later.
    signal.alarm(0)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the work inside as Ctrl-C does: by KeyboardInterrupt, so that everything is taken down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    signal.alarm(0)
    raise KeyboardInterrupt
