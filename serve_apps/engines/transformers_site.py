"""Puts the transformers engine together from the settings."""

from collections.abc import Sequence
from pathlib import Path

import torch

from actors.gpu.drivers import ChargeableNode
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.settings import ServeSettings, Settings
from serve_apps.engines.admission_queue import BatchLimits
from serve_apps.engines.charged_activity import ActivityCharge, ChargedGpus, RealGpus
from serve_apps.engines.model_tokenizer import tokenizer_of
from serve_apps.engines.protocol import EngineError
from serve_apps.engines.transformers_engine import ModelSite, TransformersEngine

PAGE_TOKENS = 64
BATCH_TOKENS = 512
"""Most tokens in an iteration. Without FlashAttention an iteration holds an attention mask of this many rows and the
whole KV cache: 128 MiB for 65,536 tokens in single precision."""
BATCH_REQUESTS = 256


def transformers_engine(
    settings: Settings, profile: MachineProfile, tp: int, node: ChargeableNode, indices: Sequence[int]
) -> TransformersEngine:
    """On simulated GPUs the model runs on the CPU and its work is charged to them as the profile says; on real ones it
    runs on the replica's GPU. Raises EngineError for more than one real GPU."""
    serve, simulated = settings.serve, settings.gpu.driver == "simulated"
    if not simulated and tp > 1:
        raise EngineError(
            f"the transformers engine runs on one GPU and this replica has {tp}; use a profile with tensor parallelism "
            "1, or another serve.engine"
        )
    device = "cpu" if simulated or not torch.cuda.is_available() else "cuda"
    charged = ChargedGpus(node, indices, profile.times(tp), profile.limits(tp).batch_tokens)
    return _engine(serve, device, tp, charged if simulated else RealGpus())


def uncharged_engine(serve: ServeSettings) -> TransformersEngine:
    """On this machine's CPU or one GPU, without a node of GPUs that its work is charged to."""
    return _engine(serve, "cuda" if torch.cuda.is_available() else "cpu", 1, RealGpus())


def _engine(serve: ServeSettings, device: str, tp: int, charge: ActivityCharge) -> TransformersEngine:
    limits = BatchLimits(serve.kv_cache_tokens // PAGE_TOKENS * PAGE_TOKENS, PAGE_TOKENS, BATCH_TOKENS, BATCH_REQUESTS)
    folder = None if serve.model_path is None else Path(serve.model_path)
    site = ModelSite(folder, device, limits, serve.stream_interval_s, tp)
    return TransformersEngine(site, tokenizer_of(serve.model_path), charge)
