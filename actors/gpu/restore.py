"""Reset clocks that a run left lowered, without Ray: what `down` and the next `up` do after whatever happened."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from actors.gpu.gpud_client import GpudClient, GpudError
from actors.gpu.node_record import NodeRecord
from actors.gpu.simulated import SimulatedNode

END_S = 10.0


def restore_defaults(run_dir: Path) -> list[str]:
    """Bring every GPU of the nodes kept in this run folder back to its defaults; what was found, in words."""
    return [*_own_gpuds(run_dir), *_simulated(run_dir)]


def _simulated(run_dir: Path) -> Iterator[str]:
    for path in sorted(run_dir.glob("gpus-*.bin")):
        node = SimulatedNode(path)
        try:
            lowered = [gpu for gpu in node.gpus() if gpu.locked_mhz() != gpu.supported_freqs_mhz()[-1]]
            for gpu in lowered:
                gpu.reset_freq()
                gpu.reset_power_limit()
        finally:
            node.close()
        if lowered:
            yield f"{len(lowered)} GPUs of {path.stem.removeprefix('gpus-')} had lowered clocks: reset"


def _own_gpuds(run_dir: Path) -> Iterator[str]:
    """Those that the run's agents started on this node: each undoes what it set and ends; where one is gone, what it
    left is undone in its place. A gpud that was there before goes on: its leases lapse."""
    for path in sorted(run_dir.glob("gpud-*.json")):
        record = NodeRecord.read(run_dir, path.stem.removeprefix("gpud-"))
        if record is None or record.own_state is None:
            continue
        if _ended(Path(record.socket)):
            continue
        state = Path(record.own_state)
        left = list((state / "leases").glob("*.json"))
        if not left:
            continue
        command = [sys.executable, "-m", "gpud", "--state", str(state), "--restore-only", "--driver", record.driver]
        if record.driver == "simulated":
            command += ["--simulated-file", str(path.with_name(f"gpus-{path.stem.removeprefix('gpud-')}.bin"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        told = "reset" if done.returncode == 0 else f"NOT reset: {done.stderr.strip()[-300:]}"
        yield f"{len(left)} GPUs were left set by a gpud that is gone: {told}"


def _ended(socket: Path) -> bool:
    """Whether a gpud answered there and has ended as it should."""
    client = GpudClient(socket, timeout_s=2.0)
    try:
        pid = int(client.read(max_age_s=3600.0)["gpud"]["pid"])
    except GpudError:
        return False
    finally:
        client.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until_s = time.monotonic() + END_S
    while socket.exists() and time.monotonic() < until_s:
        time.sleep(0.05)
    return not socket.exists()
