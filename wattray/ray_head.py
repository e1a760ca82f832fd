"""A local Ray head that outlives the command that started it, and is ended by process id, never by `ray stop`."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from serve_apps.naming import PROXY_ENVIRONMENT
from wattray.errors import WattrayError


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of a head started here; all on loopback."""

    ray: int = 6379
    dashboard: int = 8265
    metrics: int = 8090


@dataclass(frozen=True, slots=True)
class Running:
    """A control plane that is up, as the next command finds it."""

    address: str
    dashboard_url: str
    metrics_port: int | None
    run_dir: str
    router_url: str
    head_pid: int | None
    """None where wattray attached to a Ray that was running already."""


def state_file() -> Path:
    """One control plane per user and temp folder."""
    return Path(tempfile.gettempdir()) / f"wattray-{os.getuid()}" / "up.json"


def save(running: Running) -> None:
    path = state_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(running)))


def load() -> Running | None:
    """What is up, or None; a head that has died since counts as down."""
    try:
        values = json.loads(state_file().read_text())
    except FileNotFoundError:
        return None
    running = Running(**values)
    if running.head_pid is not None and not psutil.pid_exists(running.head_pid):
        forget()
        return None
    return running


def forget() -> None:
    state_file().unlink(missing_ok=True)


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


def start(gpus: int, ports: Ports, log_path: Path) -> subprocess.Popen[bytes]:
    """Start a head with ``gpus`` simulated GPUs as Ray resources, in a session of its own; returns when it
    answers. Raises WattrayError where a port is taken or Ray does not come up."""
    check_free("127.0.0.1", ports.ray, "Ray", "--ray-port")
    check_free("127.0.0.1", ports.dashboard, "the Ray dashboard", "--dashboard-port")
    check_free("127.0.0.1", ports.metrics, "Ray's metrics endpoint", "--metrics-port")
    environment = dict(os.environ)
    environment.setdefault("RAY_AUTH_MODE", "disabled")
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
        "ray.scripts.scripts",
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
        head = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    _wait_until_it_answers(head, ports, log_path)
    return head


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_answers(head: subprocess.Popen[bytes], ports: Ports, log_path: Path) -> None:
    waiting = {ports.ray, ports.dashboard}
    deadline_s = time.monotonic() + 60
    try:
        while waiting:
            if head.poll() is not None or time.monotonic() > deadline_s:
                tail = log_path.read_text(errors="replace")[-1500:]
                raise WattrayError(f"Ray did not start (its log: {log_path}):\n{tail}")
            time.sleep(0.2)
            waiting = {port for port in waiting if not _listens(port)}
    except BaseException:
        end(head.pid)
        raise


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(head_pid: int, patience_s: float = 3.0) -> None:
    """End a head that wattray started and everything it started: asked first, then made to. A raylet that is asked
    waits ten seconds and more for its actors; ours have nothing left to save."""
    try:
        head = psutil.Process(head_pid)
        family = {head, *head.children(recursive=True)}
    except psutil.NoSuchProcess:
        return
    head.send_signal(signal.SIGTERM)
    psutil.wait_procs([head], timeout=patience_s)
    with suppress(psutil.NoSuchProcess):
        family.update(head.children(recursive=True))
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=5)
