"""``llama2-70b-h100``: Llama2-70B as one real H100 ran its shares, plus all-reduces and an engine.

``benchmarks/profiles/fit_h100.py`` fits it; ``h100_fit.json`` is all that the package carries of the measurements.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources

import numpy as np
from pydantic import BaseModel, ConfigDict

from control_plane.domain import Slo
from control_plane.hardware.energy_profile import LLAMA2_70B, POLICY_FREQS_MHZ, kv_limits
from control_plane.hardware.gpu_model import H100_SXM, GpuSpec
from control_plane.hardware.iteration_tables import Floats, IterationTables
from control_plane.hardware.machine_profile import Evidence, MachineProfile
from control_plane.hardware.replica_model import ReplicaLimits
from control_plane.hardware.share_fit import AllReduceFit, EngineCosts, ShareFit, activities

NAME = "llama2-70b-h100"
BATCH_TOKENS = 2048
ENGINE_OVERHEAD_S = 0.0015
"""What an engine adds to an iteration on the host: between the .5 and 3 ms that closed-loop fits of vLLM's measured
rows ask for (docs/profiles.md)."""


class H100Fit(BaseModel):
    """What benchmarks/profiles/fit_h100.py wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: ShareFit
    all_reduce: Mapping[int, AllReduceFit]
    errors: Mapping[str, float]


@cache
def h100_fit() -> H100Fit:
    """The fitted parameters that the package carries."""
    text = resources.files("control_plane.hardware").joinpath("h100_fit.json").read_text(encoding="utf-8")
    return H100Fit.model_validate_json(text)


def share_gpu() -> GpuSpec:
    """The measured H100: idle 77.6 W without a context and 123.6 W with one. Its memory and SM powers are those of
    ``H100_SXM``, in whose shares the activities of training are given too."""
    return GpuSpec(
        name=H100_SXM.name,
        freqs_mhz=H100_SXM.freqs_mhz,
        idle_w=77.6,
        context_w=123.6,
        mem_w=H100_SXM.mem_w,
        sm_w=H100_SXM.sm_w,
        knee_mhz=H100_SXM.knee_mhz,
        knee_voltage_ratio=H100_SXM.knee_voltage_ratio,
        power_limit_w=700.0,
        settle_ns=H100_SXM.settle_ns,
    )


def llama2_70b_h100(slo: Slo) -> MachineProfile:
    part, model = h100_fit(), LLAMA2_70B
    gpu = share_gpu()
    costs = EngineCosts(ENGINE_OVERHEAD_S, model.layers, part.all_reduce)
    limits = {tp: kv_limits(model, tp, BATCH_TOKENS) for tp in sorted(part.all_reduce)}
    return MachineProfile(
        NAME,
        gpu,
        slo,
        POLICY_FREQS_MHZ,
        {tp: share_tables(part.share, gpu, costs, tp, limits[tp]) for tp in limits},
        limits,
        Evidence(
            era="2026 kernels (CUDA graphs), vLLM 0.24's all-reduces, a stated overhead of the engine",
            source="117 points of one H100 at default clocks and 700 W: Llama2-70B's share at TP 8, 4 and 2",
            measured_freqs_mhz=(gpu.max_freq_mhz,),
            measured_batch=256,
            measured_input=8192,
            notes=(
                "the power limit holds iterations of many tokens to 1600-1900 MHz: a lock above that changes nothing",
                f"all-reduces are a fit to a public table; the engine's {ENGINE_OVERHEAD_S * 1e3:g} ms are assumed",
                "clocks below the default were never measured; boards differ by about 10 % in power",
                "power is by tokens in an iteration; contexts of 512 to 8192 tokens move it by up to 15 %",
            ),
            errors=part.errors,
        ),
    )


def share_tables(share: ShareFit, gpu: GpuSpec, costs: EngineCosts, tp: int, limits: ReplicaLimits) -> IterationTables:
    """Iterations of one tensor parallelism. A GPU that waits for its peers draws what any running kernel draws; the
    power limit acts on the mean over an iteration."""
    tokens = np.arange(limits.batch_tokens + limits.batch_requests + 1, dtype=np.float64)
    own_s, waits_s = share.share_s(tp, tokens), costs.waiting_s(tp, tokens)
    part = own_s / (own_s + waits_s)
    drawn_w = share.draws(tp, tokens), share.waiting_w()
    steady_w, clocked_w = (part * watts + (1 - part) * waiting for watts, waiting in zip(*drawn_w, strict=True))
    work = activities(gpu, steady_w, clocked_w)
    # More tokens never let the clock rise.
    held_mhz = np.minimum.accumulate([gpu.held_mhz(activity) for activity in work])

    def ratio(freq_mhz: int, at: Floats) -> Floats:
        result: Floats = gpu.max_freq_mhz / np.minimum(freq_mhz, np.interp(at, tokens, held_mhz))
        return result

    def seconds(freq_mhz: int, at: Floats) -> Floats:
        return share.share_s(tp, at, ratio(freq_mhz, at)) + costs.waiting_s(tp, at)

    full = np.array([float(limits.batch_tokens)])
    return IterationTables(
        seconds,
        gpu.freqs_mhz,
        {freq: share.attention_s(tp, float(ratio(freq, full)[0])) for freq in gpu.freqs_mhz},
        share.context_s(tp),
        work,
    )
