"""Which GPUs an engine's workers run on: asked of each worker by ``collective_rpc``, answered by a method that is added
to it (vLLM's ``worker_extension_cls``)."""

from dataclasses import dataclass
from typing import Any

WORKER_EXTENSION = "serve_apps.ray_llm.worker_gpus.WorkerGpus"
METHOD = "wattray_gpu"


@dataclass(frozen=True, slots=True)
class WorkerGpu:
    """``uuid`` where CUDA shows the GPU, else Ray's ``index``."""

    node_id: str
    uuid: str | None
    index: int | None


class WorkerGpus:
    """Mixed into a vLLM worker, whose current CUDA device is its own."""

    def wattray_gpu(self) -> WorkerGpu:
        import ray

        context: Any = ray.get_runtime_context()
        indices = context.get_accelerator_ids()["GPU"]
        return WorkerGpu(context.get_node_id(), _cuda_uuid(), int(indices[0]) if indices else None)


def _cuda_uuid() -> str | None:
    """As NVML writes it."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
