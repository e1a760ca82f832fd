"""What several test modules share."""

import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"

QUICK = {
    "cadence": {"cluster_s": 10.0, "pool_s": 5.0, "frequency_s": 1.0},
    "sharding": {"scale_down_hold_s": 10.0, "startup_s": 3.0},
    "forecast": {"bin_s": 3.0, "window_bins": 3},
    "gpu": {"count": 34, "lease_ttl_s": 4.0},
    "training": {"gpus": 2},
}
"""Settings of the session's control plane: decisions every second."""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
