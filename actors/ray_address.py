"""Which Ray runs here. Ray's own search joins any Ray of the host, and waits minutes for one that has died."""

import os
import socket
from pathlib import Path

PROBE_S = 2.0


def running_ray() -> str | None:
    """The address of the Ray that `ray.init(address="auto")` ought to join, if it answers: `RAY_ADDRESS`, else the one
    last started under this temp folder."""
    address = os.environ.get("RAY_ADDRESS") or _last_started()
    return address if address is not None and answers(address) else None


def answers(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_S):
            return True
    except (OSError, ValueError):
        return False


def _last_started() -> str | None:
    """As Ray writes it: under RAY_TMPDIR, else TMPDIR, else /tmp. A file that another user wrote is not believed."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    path = Path(folder) / "ray" / "ray_current_cluster"
    try:
        if path.stat().st_uid != os.geteuid():
            return None
        return path.read_text().strip() or None
    except OSError:
        return None
