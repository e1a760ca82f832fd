"""The energy profiles that come with wattray, by name, and the way to a user's own."""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources

import numpy as np
from pydantic import BaseModel, ConfigDict

from control_plane.domain import Slo
from control_plane.hardware.energy_profile import (
    CURRENT_ENGINE,
    LLAMA2_70B,
    MEMORY_BYTES_PER_S,
    POLICY_FREQS_MHZ,
    ModelSpec,
    RooflineProfile,
    activity_of,
    kv_limits,
)
from control_plane.hardware.energy_table import EnergyTable, TableFit
from control_plane.hardware.fitted_times import Cell, NormFit, Pins, PowerFit, WholePassFit, rising
from control_plane.hardware.gpu_model import H100_SXM, GpuSpec
from control_plane.hardware.h100_profile import llama2_70b_h100
from control_plane.hardware.iteration_tables import Floats, IterationTables
from control_plane.hardware.machine_profile import Evidence, MachineProfile
from control_plane.hardware.profile_file import ProfileError, parse_profile
from control_plane.hardware.replica_model import ReplicaLimits

DEFAULT_PROFILE = "llama2-70b-h100"

LLAMA_8B = ModelSpec("llama8b", 8_030_257_152, 32, 4096, 32 * 2 * 8 * 128 * 2)
H200_BYTES = 139 * 2**30

WHOLE_PROMPTS = 8192
"""A 2023 engine prefilled every prompt in one pass."""


def load_profile(name_or_text: str, slo: Slo | None = None, source: str = "profile") -> MachineProfile:
    """An embedded profile by its name, or one parsed from the text of a profile file, named ``source`` in errors.

    ``slo`` overrides the profile's own limits. Raises ProfileError, for an unknown name with the known ones.
    """
    text = name_or_text.strip()
    if text.startswith("{") or "\n" in text:
        return parse_profile(name_or_text, source, slo)
    build = _EMBEDDED.get(text)
    if build is None:
        raise ProfileError(f"unknown profile {text!r}; known are {', '.join(PROFILE_NAMES)}, or give a profile file")
    return build(slo or Slo())


class _PassPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: WholePassFit
    cells: Mapping[int, tuple[Cell, ...]]
    errors: Mapping[str, float]


class _NormPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    times: NormFit
    power: PowerFit
    cells: tuple[Cell, ...]
    errors: Mapping[str, float]


class _TablePart(EnergyTable):
    fit: TableFit
    errors: Mapping[str, float]


class _Fits(BaseModel):
    """What benchmarks/profiles/fit.py wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    llama2: _PassPart
    llama8b: _NormPart
    table1: _TablePart


@cache
def fits() -> _Fits:
    """The fitted parameters that the package carries."""
    text = resources.files("control_plane.hardware").joinpath("fits.json").read_text(encoding="utf-8")
    return _Fits.model_validate_json(text)


def _llama2_current(slo: Slo) -> MachineProfile:
    return RooflineProfile(slo=slo, name="llama2-70b-h100-current")


def _llama2_2023(slo: Slo) -> MachineProfile:
    part, gpu, model = fits().llama2, H100_SXM, LLAMA2_70B
    limits = {tp: kv_limits(model, tp, WHOLE_PROMPTS) for tp in sorted(part.cells)}
    return MachineProfile(
        "llama2-70b-h100-2023",
        gpu,
        slo,
        POLICY_FREQS_MHZ,
        {tp: _whole_pass_tables(part, model, gpu, tp, limits[tp]) for tp in limits},
        limits,
        Evidence(
            era="2023 engines (whole prompts in one pass, launched from the CPU, ~29 ms a decode at TP4)",
            source="splitwise's H100 latencies, DynamoLLM Table I, public power anchor (Llama-3-70B, TP4, H100)",
            measured_freqs_mhz=(gpu.max_freq_mhz,),
            measured_batch=64,
            measured_input=8192,
            notes=(
                "absolute power is not identifiable from Table I: it is the current engine's public anchor",
                "Table I ranks power x latency of one request; power per request served ranks shapes differently",
            ),
            errors={**part.errors, **{f"table_{name}": error for name, error in fits().table1.errors.items()}},
        ),
        fits().table1,
    )


def _whole_pass_tables(
    part: _PassPart, model: ModelSpec, gpu: GpuSpec, tp: int, limits: ReplicaLimits
) -> IterationTables:
    fit, cells = part.fit, part.cells[tp]
    pins = Pins.of(cells, fit.iteration_s(tp, _tokens(cells)))

    def seconds(freq_mhz: int, tokens: Floats) -> Floats:
        return rising(fit.iteration_s(tp, tokens, gpu.max_freq_mhz / freq_mhz) * pins.factors(tokens))

    return IterationTables(
        seconds,
        gpu.freqs_mhz,
        {freq: fit.attention_s(tp, gpu.max_freq_mhz / freq) for freq in gpu.freqs_mhz},
        model.kv_bytes_per_token / (tp * MEMORY_BYTES_PER_S * CURRENT_ENGINE.memory_efficiency),
        [activity_of(tokens) for tokens in range(limits.batch_tokens + limits.batch_requests + 1)],
    )


def _tokens(cells: tuple[Cell, ...]) -> Floats:
    return np.array([float(cell.tokens) for cell in cells])


def _llama8b_h200(slo: Slo) -> MachineProfile:
    part = fits().llama8b
    gpu = GpuSpec(
        name="H200-SXM-141GB",
        freqs_mhz=H100_SXM.freqs_mhz,
        idle_w=84.0,
        context_w=127.0,
        mem_w=part.power.mem_w,
        sm_w=part.power.sm_w,
        knee_mhz=H100_SXM.knee_mhz,
        knee_voltage_ratio=H100_SXM.knee_voltage_ratio,
        power_limit_w=700.0,
        settle_ns=H100_SXM.settle_ns,
    )
    limits = kv_limits(LLAMA_8B, 1, 2048, H200_BYTES)
    times, top_mhz = part.times, gpu.max_freq_mhz
    pins = Pins.of(part.cells, times.iteration_s(_tokens(part.cells), top_mhz, top_mhz))
    tables = IterationTables(
        lambda freq_mhz, tokens: rising(times.iteration_s(tokens, freq_mhz, top_mhz) * pins.factors(tokens)),
        gpu.freqs_mhz,
        {freq: times.attention_ms * times.compute_ratio(freq) / 1e3 for freq in gpu.freqs_mhz},
        times.context_ms / 1e3,
        [
            activity_of(tokens, part.power.saturation_tokens)
            for tokens in range(limits.batch_tokens + limits.batch_requests + 1)
        ],
    )
    return MachineProfile(
        "llama8b-h200",
        gpu,
        slo,
        POLICY_FREQS_MHZ,
        {1: tables},
        {1: limits},
        Evidence(
            era="2026 kernels (CUDA graphs, paged attention), no scheduler or tokenizer cost",
            source="measured on one H200 at default clocks and 700 W, random weights",
            measured_freqs_mhz=(gpu.max_freq_mhz,),
            measured_batch=256,
            measured_input=4096,
            notes=(
                "boards differ by about 10 % in power: calibrate per GPU",
                f"the power limit holds prefills to about {times.capped_mhz} MHz: a higher lock changes nothing there",
                "power is by tokens in an iteration; contexts of 128 or 4096 tokens move it by up to 15 %",
            ),
            errors=part.errors,
        ),
    )


_EMBEDDED: Mapping[str, Callable[[Slo], MachineProfile]] = {
    "llama2-70b-h100": llama2_70b_h100,
    "llama2-70b-h100-current": _llama2_current,
    "llama2-70b-h100-2023": _llama2_2023,
    "llama8b-h200": _llama8b_h200,
}
PROFILE_NAMES = tuple(_EMBEDDED)
