"""A local Ray head that outlives the command that started it, and is ended by process id, never by `ray stop`."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from serve_apps.naming import PROXY_ENVIRONMENT
from wattray.errors import WattrayError
from wattray.process_identity import ProcessIdentity


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of a head started here; all on loopback."""

    ray: int = 6379
    dashboard: int = 8265
    metrics: int = 8090


RUN_VARIABLE = "WATTRAY_RUN"
"""In the environment of every process of a head: the name of its run folder, which proves whose it is."""


def check_free(host: str, port: int, what: str, option: str) -> None:
    """Raises WattrayError where something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise WattrayError(
                f"{what}: port {port} on {host} is in use ({error.strerror}); free it or choose another with {option}"
            ) from None


def start(
    gpus: int, ports: Ports, log_path: Path, run: str, started: Callable[[ProcessIdentity], None] = lambda _: None
) -> ProcessIdentity:
    """Start a head with ``gpus`` GPUs as Ray resources, in a session of its own; returns when it answers.

    ``started`` is told as soon as the process exists, so that it can be found again whatever happens then. Token mode
    follows RAY_AUTH_MODE of this process. Raises WattrayError where a port is taken or Ray does not come up.
    """
    check_free("127.0.0.1", ports.ray, "Ray", "--ray-port")
    check_free("127.0.0.1", ports.dashboard, "the Ray dashboard", "--dashboard-port")
    check_free("127.0.0.1", ports.metrics, "Ray's metrics endpoint", "--metrics-port")
    environment = dict(os.environ)
    environment[RUN_VARIABLE] = run
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray runs workers at nice 15; a router behind every other process of the host cannot hold a TTFT of 250 ms.
    environment.setdefault("RAY_worker_niceness", "0")
    # Two dozen processes: glibc's arenas of each would hold memory that none of them uses.
    environment.setdefault("MALLOC_ARENA_MAX", "2")
    # An idle worker, kept for a next task that seldom comes, is another 60 MiB.
    environment.setdefault("RAY_num_workers_soft_limit", "0")
    # Our actors sleep and take no CPU of Ray's count; on a small host their number alone would be warned of.
    environment.setdefault("RAY_worker_maximum_startup_concurrency", "4")
    environment.update(PROXY_ENVIRONMENT)
    command = [
        sys.executable,
        "-m",
        "wattray.ray_head_main",
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={ports.ray}",
        f"--num-gpus={gpus}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports.dashboard}",
        f"--metrics-export-port={ports.metrics}",
        # Where another Ray of this host has the default one, no job can be submitted to this one.
        f"--dashboard-agent-listen-port={_any_free_port()}",
        "--object-store-memory=268435456",
        "--disable-usage-stats",
    ]
    with log_path.open("wb") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    head = ProcessIdentity.of(child.pid)
    try:
        started(head)
        _wait_until_it_answers(child, ports, log_path)
    except BaseException:
        end(head)
        raise
    return head


def free_port_at_best(port: int) -> int:
    """This port of loopback where it is free, else any free one."""
    try:
        check_free("127.0.0.1", port, "", "")
    except (WattrayError, OverflowError):
        return _any_free_port()
    return port


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _why(log_text: str) -> str:
    """The error that a log of Ray ends with, on one line; where it names none, its last line."""
    lines = [line.strip() for line in log_text.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    first = errors[-1] if errors else len(lines) - 1
    return " ".join(lines[first:])[:600] if lines else "it said nothing"


def _wait_until_it_answers(head: subprocess.Popen[bytes], ports: Ports, log_path: Path) -> None:
    waiting = {ports.ray, ports.dashboard}
    deadline_s = time.monotonic() + 60
    while waiting:
        if head.poll() is not None or time.monotonic() > deadline_s:
            raise WattrayError(f"Ray did not start: {_why(log_path.read_text(errors='replace'))}")
        time.sleep(0.2)
        waiting = {port for port in waiting if not _listens(port)}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(head: ProcessIdentity, patience_s: float = 3.0) -> None:
    """End a head that wattray started and everything it started: asked first, then made to. A raylet that is asked
    waits ten seconds and more for its actors; ours have nothing left to save. A process that only has the same pid by
    now is left alone."""
    process = head.process()
    if process is None:
        return
    family = {process}
    with suppress(psutil.NoSuchProcess):
        family.update(process.children(recursive=True))
        process.send_signal(signal.SIGTERM)
    psutil.wait_procs([process], timeout=patience_s)
    with suppress(psutil.NoSuchProcess):
        family.update(process.children(recursive=True))
    _kill(family)


def end_run(run: str) -> None:
    """End every process of this user that carries the run's name in its environment: what is left of a head whose
    first process is gone or was never recorded."""
    _kill(set(processes_of(run)))


def processes_of(run: str) -> Iterator[psutil.Process]:
    """This user's processes that a head of this run started, itself included."""
    for process in psutil.process_iter():
        try:
            if process.uids().real == os.geteuid() and process.environ().get(RUN_VARIABLE) == run:
                yield process
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def _kill(family: Collection[psutil.Process]) -> None:
    for process in family:
        # psutil compares start times before it signals: a pid that was given anew is not hit.
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=5)
