"""Reset clocks that a run left lowered, without Ray: what `down` and the next `up` do after whatever happened."""

from pathlib import Path

from actors.gpu.simulated import SimulatedNode


def restore_defaults(run_dir: Path) -> list[str]:
    """Bring every GPU of the nodes kept in this run folder back to its defaults; what was found, in words."""
    told = []
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
            told.append(f"{len(lowered)} GPUs of {path.stem.removeprefix('gpus-')} had lowered clocks: reset")
    return told
