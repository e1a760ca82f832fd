"""Profiles from published peaks and anchors: a roofline of one dense model on one GPU type with one engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from control_plane.domain import Slo
from control_plane.hardware.gpu_model import H100_SXM, Activity, GpuSpec
from control_plane.hardware.iteration_tables import Floats, IterationTables
from control_plane.hardware.machine_profile import Evidence, MachineProfile
from control_plane.hardware.replica_model import ReplicaLimits


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A dense transformer. Bytes are of one whole copy; KV bytes are per token of context."""

    name: str
    parameters: float
    layers: int
    hidden: int
    kv_bytes_per_token: int
    bytes_per_parameter: int = 2


LLAMA2_70B = ModelSpec("llama2-70b", 69e9, 80, 8192, 80 * 2 * 8 * 128 * 2)


@dataclass(frozen=True, slots=True)
class EngineEra:
    """How well an engine uses the hardware."""

    name: str
    compute_efficiency: float
    memory_efficiency: float
    overhead_s: float
    """Launches and scheduling, an iteration, at the highest clock."""
    allreduce_latency_s: float
    """A pair of all-reduces of a few tokens, per extra GPU, all layers together, an iteration."""
    era: str
    source: str
    notes: Sequence[str] = ()


CURRENT_ENGINE = EngineEra(
    name="current",
    compute_efficiency=0.52,
    memory_efficiency=0.85,
    overhead_s=0.0029,
    allreduce_latency_s=0.00020,
    era="2024-2026 engines (continuous batching, chunked prefill, CUDA graphs)",
    source="roofline through public anchors: Llama-3-70B at TP4 on H100, data sheets, DynamoLLM Table I's shape",
    notes=(
        "nothing here was measured by us: clocks, TP2 and TP8 follow physics from a TP4 anchor at the highest clock",
    ),
)
"""Prefill efficiency: fit of splitwise's H100 latencies. The rest: solved from the public TP4 anchor,
inter-token 15.7 + 0.104·B ms (Llama-3-70B, H100)."""

PEAK_FLOPS = 989e12
MEMORY_BYTES_PER_S = 3.35e12
LINK_BYTES_PER_S = 300e9
GPU_BYTES = 85.5e9
USABLE_MEMORY_RATIO = 0.90
"""H100 SXM5 data sheet; NVLink at the 300 GB/s that DynamoLLM measured; vLLM's default memory share."""

POLICY_FREQS_MHZ = (795, 990, 1200, 1395, 1590, 1785, 1980)
"""The clocks policies choose from: the paper's sweep, 0.8-1.98 GHz in steps of about 200 MHz."""


ANCHOR_SATURATION_TOKENS = 152.0


def activity_of(tokens: int, saturation_tokens: float = ANCHOR_SATURATION_TOKENS) -> Activity:
    """SM and memory activity of an iteration over this many tokens: memory-bound at one token, compute-bound from
    about 500. With H100_SXM it gives the public anchor's P = 426 + 203(1 - exp(-B/117)) W per GPU in its slope."""
    saturation = 1.0 - math.exp(-tokens / saturation_tokens)
    return Activity(sm=0.287 + 0.713 * saturation, mem=1.0 - 0.75 * saturation)


class RooflineProfile(MachineProfile):
    """Energy profile from published peaks and anchors."""

    def __init__(
        self,
        model: ModelSpec = LLAMA2_70B,
        gpu: GpuSpec = H100_SXM,
        engine: EngineEra = CURRENT_ENGINE,
        slo: Slo | None = None,
        tps: Sequence[int] = (2, 4, 8),
        freqs_mhz: Sequence[int] = POLICY_FREQS_MHZ,
        batch_tokens: int = 2048,
        name: str | None = None,
    ) -> None:
        self.model, self.engine = model, engine
        limits = {tp: kv_limits(model, tp, batch_tokens) for tp in tps}
        super().__init__(
            name or f"{model.name}/{gpu.name}/{engine.name}",
            gpu,
            slo or Slo(),
            freqs_mhz,
            {tp: roofline_tables(model, gpu, engine, tp, limits[tp]) for tp in tps},
            limits,
            Evidence(engine.era, engine.source, notes=engine.notes),
        )


def kv_limits(model: ModelSpec, tp: int, batch_tokens: int, gpu_bytes: float = GPU_BYTES) -> ReplicaLimits:
    """What the KV cache holds beside the weights."""
    weights = model.parameters * model.bytes_per_parameter
    kv_bytes = tp * gpu_bytes * USABLE_MEMORY_RATIO - weights
    return ReplicaLimits(kv_tokens=int(kv_bytes / model.kv_bytes_per_token), batch_tokens=batch_tokens)


def roofline_tables(
    model: ModelSpec, gpu: GpuSpec, engine: EngineEra, tp: int, limits: ReplicaLimits
) -> IterationTables:
    """Weights are read once an iteration, every token is multiplied with all of them, GPUs exchange each layer."""
    weights_s = model.parameters * model.bytes_per_parameter / (tp * MEMORY_BYTES_PER_S * engine.memory_efficiency)
    launch_s = engine.overhead_s + engine.allreduce_latency_s * (tp - 1)
    flops = tp * PEAK_FLOPS * engine.compute_efficiency
    linear_s = 2 * model.parameters / flops
    ring_bytes = 2 * model.layers * 2 * model.hidden * 2 * (tp - 1) / tp
    link_s = ring_bytes / LINK_BYTES_PER_S
    attention_s = 4 * model.layers * model.hidden / flops
    ratios = {freq: gpu.max_freq_mhz / freq for freq in gpu.freqs_mhz}

    def seconds(freq_mhz: int, tokens: Floats) -> Floats:
        ratio = ratios[freq_mhz]
        base_s = weights_s * memory_slowdown(ratio) + launch_s * ratio
        return base_s + (linear_s * ratio + link_s) * tokens

    return IterationTables(
        seconds=seconds,
        freqs_mhz=gpu.freqs_mhz,
        attention_s={freq: attention_s * ratio for freq, ratio in ratios.items()},
        context_s=model.kv_bytes_per_token / (tp * MEMORY_BYTES_PER_S * engine.memory_efficiency),
        activity=[activity_of(tokens) for tokens in range(limits.batch_tokens + limits.batch_requests + 1)],
    )


Ratio = TypeVar("Ratio", float, Floats)


def memory_slowdown(ratio: Ratio) -> Ratio:
    """How much longer memory-bound work takes at a clock ``ratio`` times lower than the highest: L2 and the
    interconnect between the SMs slow down too (DynamoLLM Table I: 1.1 at 1.2 GHz, 1.3 at 0.8 GHz)."""
    return 1 + 0.12 * (ratio - 1) + 0.07 * (ratio - 1) ** 2
