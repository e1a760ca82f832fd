"""The GPUs that Ray gave to a replica, behind the driver that the settings name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.gpu.drivers import ChargeableNode, gpus_of, measured_gpus, open_charged
from actors.runtime import Installation, run_folder
from control_plane.ports import Gpu
from serve_apps.ray_llm.worker_gpus import WorkerGpu


@dataclass(frozen=True, slots=True)
class ReplicaGpus:
    """``indices`` are Ray's, in the order of the tensor parallel ranks; ``node`` is the driver's view of all GPUs;
    ``gpus`` are where the engine's work shows in power and energy."""

    node_id: str
    node: ChargeableNode
    indices: tuple[int, ...]
    uuids: tuple[str, ...]
    gpus: tuple[Gpu, ...]


def gpus_given(deployment: Installation, tp: int) -> ReplicaGpus:
    """Called in a replica's process. Raises RuntimeError where Ray gave another number than ``tp``."""
    context: Any = ray.get_runtime_context()
    indices = tuple(int(index) for index in context.get_accelerator_ids()["GPU"])
    if len(indices) != tp:
        raise RuntimeError(f"TP{tp} needs {tp} GPUs, Ray gave {indices}")
    node_id = context.get_node_id()
    node = open_charged(deployment.settings.gpu.driver, run_folder(deployment.run_dir), node_id)
    return _shown(deployment, node_id, node, indices, deployment.settings.serve.engine != "simulated")


def gpus_of_workers(deployment: Installation, node_id: str, workers: Sequence[WorkerGpu]) -> ReplicaGpus:
    """Those that an engine's workers say they run on. Raises RuntimeError where a worker has none, or is elsewhere."""
    node = open_charged(deployment.settings.gpu.driver, run_folder(deployment.run_dir), node_id)
    indices = []
    for rank, worker in enumerate(workers):
        if worker.node_id != node_id:
            raise RuntimeError(f"rank {rank} runs on node {worker.node_id}, the replica on {node_id}: one node only")
        index = worker.index if worker.uuid is None else node.index_of(worker.uuid)
        if index is None:
            raise RuntimeError(f"rank {rank} runs on no GPU")
        indices.append(index)
    return _shown(deployment, node_id, node, tuple(indices), real_engine=True)


def _shown(
    deployment: Installation, node_id: str, node: ChargeableNode, indices: tuple[int, ...], real_engine: bool
) -> ReplicaGpus:
    gpus = gpus_of(node, indices)
    uuids = tuple(gpu.uuid for gpu in gpus)
    if deployment.settings.gpu.driver == "nvml" and real_engine:
        # What the node shows of real GPUs are shadows that simulated work is charged to.
        gpus = measured_gpus(uuids)
    return ReplicaGpus(node_id, node, indices, uuids, gpus)
