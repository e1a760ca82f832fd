"""Puts the vLLM engine together from the settings."""

from collections.abc import Sequence
from pathlib import Path

from actors.gpu.drivers import ChargeableNode
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.settings import Settings
from serve_apps.engines.charged_activity import ChargedGpus, RealGpus
from serve_apps.engines.model_tokenizer import tokenizer_of
from serve_apps.engines.vllm_engine import VllmEngine


def vllm_engine(
    settings: Settings, profile: MachineProfile, tp: int, node: ChargeableNode, indices: Sequence[int]
) -> VllmEngine:
    """On real GPUs the model is spread over those of the replica; on simulated ones it runs unspread on whatever vLLM
    was built for, and its work is charged to them as the profile says."""
    from serve_apps.engines.vllm_library import VllmLibrary

    serve, simulated = settings.serve, settings.gpu.driver == "simulated"
    folder = None if serve.model_path is None else Path(serve.model_path)
    library = VllmLibrary(folder, 1 if simulated else tp, serve.stream_interval_s, serve.vllm_args)
    charged = ChargedGpus(node, indices, profile.times(tp), profile.limits(tp).batch_tokens)
    charge = charged if simulated else RealGpus()
    return VllmEngine(library, tokenizer_of(serve.model_path), charge, serve.stream_interval_s, tp)
