"""Reset clocks that a run left lowered, without Ray: what `down` and the next `up` do after whatever happened."""

from pathlib import Path

from actors.gpu.simulated import SimulatedNode
from control_plane.hardware.gpu_model import H100_SXM


def restore_defaults(run_dir: Path) -> list[str]:
    """Bring every GPU of the nodes kept in this run folder back to its default clock; what was found, in words."""
    told = []
    for path in sorted(run_dir.glob("gpus-*.bin")):
        node = SimulatedNode(path, H100_SXM)
        try:
            lowered = [index for index in range(node.count) if node.state(index).target_mhz < node.spec.max_freq_mhz]
            for index in lowered:
                node.gpu(index).reset_freq()
        finally:
            node.close()
        if lowered:
            told.append(f"{len(lowered)} GPUs of {path.stem.removeprefix('gpus-')} had lowered clocks: reset")
    return told
