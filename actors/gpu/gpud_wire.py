"""What gpud and its clients say to each other: lines of JSON on a Unix socket, one request or answer each.

    {"id": 1, "op": "read", "gpus": ["GPU-…"], "max_age_s": 0.2}
    {"id": 2, "op": "lock", "owner": "pool", "epoch": 3, "ttl_s": 15, "gpus": {"GPU-…": {"max_mhz": 1200}}, "why": "…"}
    {"id": 3, "op": "lock", "owner": "job", "ttl_s": 15, "schedule": ["GPU-…"], "clocks_mhz": [990, 1980]}
    {"id": 4, "op": "lock", "owner": "job", "set": {"GPU-…": 1200}}
    {"id": 5, "op": "limit_power", "owner": "pool", "ttl_s": 15, "gpus": {"GPU-…": {"power_w": 500}}}
    {"id": 6, "op": "reset", "owner": "pool", "gpus": ["GPU-…"]}

An answer has the request's ``id`` and ``"ok": true``, or ``"ok": false`` and an error with its kind and a message. This
is everything that gpud does for anybody. Answers of one connection may come in another order than its requests.
"""

import os
from enum import StrEnum
from pathlib import Path

MOST_FRAME_BYTES = 64 * 1024
"""A lock of 100 GPUs takes 8 KiB; a longer line ends the connection."""
DEFAULT_SOCKET = Path("/run/wattray/gpud.sock")
SOCKET_VARIABLE = "WATTRAY_GPUD_SOCKET"


class ErrorKind(StrEnum):
    """Why a request, or one of its GPUs, was refused."""

    BAD_REQUEST = "bad_request"
    """No JSON object of a known form; a field is missing, unknown or of another type."""
    FORBIDDEN = "forbidden"
    """The peer's user may not talk to gpud, or not do this."""
    OUT_OF_BOUNDS = "out_of_bounds"
    """Outside the supported range, the operator's bounds or the leased range; no number."""
    LEASED = "leased"
    """Somebody else's lease holds the GPU, or the caller has none."""
    STALE_EPOCH = "stale_epoch"
    NO_SUCH_GPU = "no_such_gpu"
    NOT_OURS = "not_ours"
    """A MIG or shared GPU."""
    PERMISSION = "permission"
    NOT_SUPPORTED = "not_supported"
    LOST = "lost"
    BUSY = "busy"
    """The driver hangs or reported a passing fault."""
    RATE = "rate"
    """More sets than a GPU may get in a second."""
    SUPERSEDED = "superseded"
    """A newer target came before this one was set."""
    STUCK = "stuck"
    """Set, and the clock that runs is above it."""
    DRIVER = "driver"
    """The driver refused for another reason."""
    RESTORING = "restoring"
    """gpud has not yet reset what it found set when it started."""


def default_socket() -> Path:
    """Where commands look for gpud: the environment's word, else the place of the systemd unit."""
    return Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)
