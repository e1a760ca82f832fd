"""gpud's command line as values, checked before anything starts."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.gpu.gpud_wire import DEFAULT_SOCKET
from control_plane.leases import MAX_TTL_S
from gpud.bounds import NO_BOUNDS, Bounds
from gpud.executor import Rules


@dataclass(frozen=True, slots=True)
class Options:
    """``simulated_file``: the simulated node's file; where there is none, it is made with ``simulated_gpus`` GPUs."""

    socket: Path
    state: Path
    rules: Rules
    driver: str
    allow_shared: bool
    group: str | None
    uids: tuple[int, ...]
    metrics_port: int | None
    simulated_file: Path | None
    simulated_gpus: int
    restore_only: bool
    end_idle_s: float | None
    """End when nothing was leased, owed or asked for this long; None: never."""
    rescan_s: float
    """How often the driver is asked which GPUs there are; lost ones are looked at again then."""


def parse_options(arguments: Sequence[str] | None) -> Options:
    """Ends the process with code 2 and a line on stderr where an option is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        bounds = NO_BOUNDS if given.bounds is None else Bounds.parse(given.bounds)
        if not 0 < given.ttl_max <= MAX_TTL_S:
            raise ValueError(f"--ttl-max must be more than 0 and at most {MAX_TTL_S:.0f}, got {given.ttl_max:g}")
        if not (math.isfinite(given.settle_ms) and 0 < given.settle_ms <= 10_000):
            raise ValueError(f"--settle-ms must be more than 0 and at most 10000, got {given.settle_ms:g}")
        if not 0.1 <= given.rescan <= 3600:
            raise ValueError(f"--rescan must be from 0.1 to 3600, got {given.rescan:g}")
    except ValueError as error:
        parser.error(str(error))
    return Options(
        given.socket,
        given.state,
        Rules(given.ttl_max, bounds, given.dry_run, given.settle_ms / 1000),
        given.driver,
        given.allow_shared,
        given.group,
        tuple(given.allow_uid),
        given.metrics_port,
        given.simulated_file,
        given.simulated_gpus,
        given.restore_only,
        given.end_when_idle,
        given.rescan,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wattray gpud",
        description="The only writer of GPU clocks on this node, under leases.",
    )
    add = parser.add_argument
    add("--socket", type=Path, default=DEFAULT_SOCKET, help=f"Unix socket to listen at ({DEFAULT_SOCKET}).")
    add("--state", type=Path, default=Path("/var/lib/wattray/gpud"), help="Folder of lease records and the audit.")
    add("--ttl-max", type=float, default=60.0, help="The longest lease that is granted, in seconds (60).")
    add("--bounds", metavar="MIN:MAX", help="Clocks in MHz outside which nothing is ever set.")
    add("--driver", choices=("nvml", "simulated"), default="nvml", help="Which GPUs (nvml).")
    add("--dry-run", action="store_true", help="Record in the audit what would be set, and set nothing.")
    add("--allow-shared", action="store_true", help="Set MIG GPUs and those that several users run on as well.")
    add("--group", help="Members of this group may use the socket too (mode 0660 instead of 0600).")
    add("--allow-uid", type=int, action="append", default=[], help="This user may use the socket too; repeatable.")
    add("--metrics-port", type=int, help="Prometheus endpoint on 127.0.0.1; 0 takes any free port.")
    add("--settle-ms", type=float, default=500.0, help="How long a new clock may take to settle (500).")
    add("--rescan", type=float, default=10.0, help="Look for new and lost GPUs every so many seconds (10).")
    add("--end-when-idle", type=float, metavar="S", help="End when nobody has needed it for so many seconds.")
    add("--restore-only", action="store_true", help="Undo what an earlier gpud left set, and end.")
    add("--simulated-file", type=Path, help="File of the simulated GPUs (simulated.bin in --state).")
    add("--simulated-gpus", type=int, default=8, help="How many to make where there is no such file (8).")
    return parser
