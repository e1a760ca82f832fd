"""The GPUs that Ray gave to a replica: the one place of this package that knows which driver is behind them."""

from dataclasses import dataclass
from typing import Any

import ray

from actors.gpu.simulated import SimulatedNode, simulated_uuid
from actors.runtime import Deployment, node_file
from control_plane.ports import Gpu


@dataclass(frozen=True, slots=True)
class ReplicaGpus:
    """``indices`` are Ray's, in the order of the tensor parallel ranks; ``node`` is the driver's view of all GPUs."""

    node_id: str
    node: SimulatedNode
    indices: tuple[int, ...]
    uuids: tuple[str, ...]
    gpus: tuple[Gpu, ...]


def gpus_given(deployment: Deployment, tp: int) -> ReplicaGpus:
    """Called in a replica's process. Raises RuntimeError where Ray gave another number than ``tp``."""
    context: Any = ray.get_runtime_context()
    indices = tuple(int(index) for index in context.get_accelerator_ids()["GPU"])
    if len(indices) != tp:
        raise RuntimeError(f"TP{tp} needs {tp} GPUs, Ray gave {indices}")
    node_id = context.get_node_id()
    node = SimulatedNode(node_file(deployment.run_dir, node_id), deployment.profile.gpu)
    return ReplicaGpus(
        node_id,
        node,
        indices,
        tuple(simulated_uuid(index) for index in indices),
        tuple(node.gpu(index) for index in indices),
    )
