"""What several test modules share."""

import socket
from pathlib import Path

from control_plane.training.profile import Choice, ComputationKey

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"

QUICK = {
    "cadence": {"cluster_s": 10.0, "pool_s": 5.0, "frequency_s": 1.0},
    "sharding": {"scale_down_hold_s": 10.0, "startup_s": 3.0},
    "forecast": {"bin_s": 3.0, "window_bins": 3},
    "gpu": {"count": 36, "lease_ttl_s": 4.0},
    "training": {"gpus": 4},
}
"""Settings of the session's control plane: decisions every second."""


def pipeline_choices(stages: int) -> dict[ComputationKey, tuple[Choice, ...]]:
    """A small training profile at three clocks, later stages heavier."""
    choices = {}
    for stage in range(stages):
        for instruction, work_s in (("forward", 0.1), ("backward", 0.2)):
            size_s = work_s * (1 + 0.4 * stage)
            times_s = {mhz: size_s * (0.25 + 0.75 * 1980 / mhz) for mhz in (1980, 1590, 1200)}
            choices[stage, instruction] = tuple(
                Choice(mhz, time_s, time_s * (130 + 450 * (mhz / 1980) ** 2.6)) for mhz, time_s in times_s.items()
            )
    return choices


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
