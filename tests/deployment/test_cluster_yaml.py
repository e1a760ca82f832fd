"""cluster.yaml: valid by Ray's own schema, harmless on a shared host, brought up over ssh where it can be."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests_support import ROOT, free_ports

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
COMMANDS = ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


def test_rays_own_schema_takes_it() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(CLUSTER)
    validate_config(prepared)
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[kind] == CLUSTER[kind]


def test_no_command_stops_other_rays() -> None:
    for kind in COMMANDS:
        for command in CLUSTER.get(kind, []):
            assert "ray stop" not in command
            assert "pkill" not in command


@dataclass(frozen=True)
class Host:
    """An ssh server on loopback whose users live in a folder of ours, and the cluster file for it."""

    home: Path
    cluster: Path
    ray_port: int

    def ray(self, *command: str, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        environment = {**kept, "RAY_TMPDIR": str(self.home), "TMPDIR": str(self.home)}
        asked = [sys.executable, "-m", "ray.scripts.scripts", *command]
        return subprocess.run(
            asked,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )


RELAY = """import socket, sys, threading, os
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def inward():
    while data := os.read(0, 65536):
        link.sendall(data)
    link.shutdown(socket.SHUT_WR)
threading.Thread(target=inward, daemon=True).start()
while data := link.recv(65536):
    os.write(1, data)
"""
"""`ssh_proxy_command` for a port other than 22: Ray's launcher has no setting for the port."""


@pytest.fixture
def host() -> Iterator[Host]:
    if SSHD is None or shutil.which("rsync") is None:
        pytest.skip("no sshd or no rsync here")
    if os.getuid() != 0:
        pytest.skip("a private sshd needs root")
    home = Path(tempfile.mkdtemp(prefix="ws-", dir="/tmp"))
    ssh_port, ray_port, dashboard, agent = free_ports(4)
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    (home / "relay.py").write_text(RELAY)
    path = f"PATH={Path(sys.executable).parent}:$PATH"
    (home / ".bashrc").write_text(f"export {path} RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token\n")
    (home / "sshd.conf").write_text(
        f"Port {ssh_port}\nListenAddress 127.0.0.1\nHostKey {home}/host_key\nAuthorizedKeysFile {home}/key.pub\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n"
        f"SetEnv HOME={home} RAY_TMPDIR={home} TMPDIR={home}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-f", str(home / "sshd.conf")], stderr=subprocess.DEVNULL)
    text = (ROOT / "cluster.yaml").read_text().replace("6379", str(ray_port))
    text = text.replace(
        "--dashboard-host", f"--dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --dashboard-host"
    )
    cluster: dict[str, Any] = yaml.safe_load(text)
    cluster["auth"] = {
        "ssh_user": "root",
        "ssh_private_key": str(home / "key"),
        "ssh_proxy_command": f"{sys.executable} {home}/relay.py {ssh_port}",
    }
    cluster["setup_commands"] = [f"ln -sfn {sys.prefix} ~/wattray/.venv"]
    (home / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    try:
        until_it_listens(ssh_port)
        yield Host(home, home / "cluster.yaml", ray_port)
    finally:
        end_all_with(home)
        server.send_signal(signal.SIGTERM)
        server.wait(10)
        shutil.rmtree(home, ignore_errors=True)


def until_it_listens(port: int) -> None:
    deadline_s = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline_s, f"sshd does not listen on {port}"
        time.sleep(0.1)


def end_all_with(home: Path) -> None:
    """End what was started over ssh: every process whose home is ours."""
    ours = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home):
                ours.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    for process in ours:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(ours, timeout=10)


@pytest.mark.ray
def test_ray_up_and_submit_work_over_ssh(host: Host) -> None:
    up = host.ray("up", str(host.cluster), "--yes", "--no-config-cache")
    assert up.returncode == 0, up.stdout[-3000:] + up.stderr[-2000:]
    assert (host.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    stranger = f"import ray; ray.init(address='127.0.0.1:{host.ray_port}', log_to_driver=False)"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    refused = subprocess.run([sys.executable, "-c", stranger], env=environment, capture_output=True, timeout=60)
    assert refused.returncode != 0, "the head answers without a token"
    script = host.home / "gpus.py"
    script.write_text(
        "import ray, wattray\n"
        f"ray.init(address='127.0.0.1:{host.ray_port}', log_to_driver=False)\n"
        "print('gpus', int(ray.cluster_resources()['GPU']))\n"
    )
    submitted = host.ray("submit", str(host.cluster), str(script), "--no-config-cache")
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-2000:]
    assert "gpus 34" in submitted.stdout
