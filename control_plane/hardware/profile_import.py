"""Profiles from other tools' measurements: NVIDIA Dynamo's profiler and ``vllm bench serve``.

Neither measures power and neither says the clock, so the GPU is named by the user and its power curve is assumed,
which the profile says. What was not measured is refused: tables end where the measurements end.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from control_plane.hardware.fitted_times import pooled
from control_plane.hardware.gpu_model import H100_SXM, GpuSpec
from control_plane.hardware.iteration_tables import Floats
from control_plane.hardware.profile_file import (
    NAME,
    SCHEMA,
    GpuPart,
    PointPart,
    ProfileError,
    ProfileFile,
    ReplicaPart,
    ShapePart,
)
from control_plane.text_edges import parse_json

Model = TypeVar("Model", bound=BaseModel)

FEWEST_GPUS, MOST_GPUS = 0.6, 64.0
LEAST_RUNS = 3
LARGEST_PASS = 8192


@dataclass(frozen=True, slots=True)
class Target:
    """What the measurements do not say: the profile's name, the GPU, its clock while measuring, the TP (None where
    the tool recorded it) and the KV cache in tokens (likewise)."""

    name: str
    gpu: GpuSpec = H100_SXM
    freq_mhz: int | None = None
    tp: int | None = None
    kv_tokens: int | None = None

    def __post_init__(self) -> None:
        """Raises ProfileError, naming the option."""
        if not re.fullmatch(NAME, self.name):
            raise ProfileError(f"--name {self.name!r}: letters, digits and . _ / - without spaces, at most 61")
        for option, value, most in (("tp", self.tp, 1024), ("kv-tokens", self.kv_tokens, 10**12)):
            if value is not None and not 1 <= value <= most:
                raise ProfileError(f"--{option} {value} must be at least 1 and at most {most}")
        if self.freq_mhz is not None and not 1 <= self.freq_mhz <= 100_000:
            raise ProfileError(f"--clock {self.freq_mhz} must be at least 1 and at most 100000 MHz")

    @property
    def clock_mhz(self) -> int:
        return self.freq_mhz or self.gpu.max_freq_mhz


class DynamoPrefill(BaseModel):
    """selected_prefill_interpolation/raw_data.npz or prefill_raw_data.json: milliseconds, tokens/s per GPU."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prefill_isl: tuple[float, ...] = Field(min_length=3)
    prefill_ttft: tuple[float, ...]
    prefill_thpt_per_gpu: tuple[float, ...]

    @field_validator("prefill_isl")
    @classmethod
    def _lengths_differ(cls, found: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(found)) < 3:
            raise ValueError(f"prompts of at least three lengths are needed, got {sorted(set(found))}")
        return found


class DynamoDecode(BaseModel):
    """selected_decode_interpolation/raw_data.npz or decode_raw_data.json: milliseconds, tokens/s per GPU."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    x_kv_usage: tuple[float, ...] = Field(min_length=3)
    y_context_length: tuple[float, ...]
    z_itl: tuple[float, ...]
    z_thpt_per_gpu: tuple[float, ...]
    max_kv_tokens: float | tuple[float, ...]

    @field_validator("x_kv_usage")
    @classmethod
    def _a_ratio(cls, found: tuple[float, ...]) -> tuple[float, ...]:
        if max(found) > 1.5:
            raise ValueError(f"a share of the KV cache between 0 and 1 is expected, got {max(found):g}: in percent?")
        return found

    @field_validator("max_kv_tokens")
    @classmethod
    def _one_size(cls, found: float | tuple[float, ...]) -> float:
        sizes = (found,) if isinstance(found, float) else found
        if len(sizes) != 1 or not 1 <= sizes[0] < 1e12:
            raise ValueError(f"one number of tokens is expected, at least 1 and finite, got {list(sizes)}")
        return sizes[0]

    @property
    def kv_tokens(self) -> int:
        assert isinstance(self.max_kv_tokens, float)
        return int(self.max_kv_tokens)


def from_dynamo(
    prefill: Mapping[str, Any], decode: Mapping[str, Any], target: Target, source: str = "dynamo"
) -> ProfileFile:
    """Both engines' raw data as mappings of arrays. A colocated replica needs both at one TP.

    Decode: ITL = iteration(batch) + c · all contexts, batch = KV usage · KV tokens / context length.
    Prefill: TTFT of one prompt = iteration(prompt) + attention over its pairs of tokens.
    """
    first = _checked(DynamoPrefill, prefill, f"{source}: prefill")
    rest = _checked(DynamoDecode, decode, f"{source}: decode")
    isl, ttft_ms = _columns(f"{source}: prefill", first.prefill_isl, first.prefill_ttft)
    usage, context, itl_ms = _columns(f"{source}: decode", rest.x_kv_usage, rest.y_context_length, rest.z_itl)
    batch = usage * rest.kv_tokens / context
    prefill_rates = _column(f"{source}: prefill_thpt_per_gpu", first.prefill_thpt_per_gpu, len(isl))
    decode_rates = _column(f"{source}: z_thpt_per_gpu", rest.z_thpt_per_gpu, len(itl_ms))
    ttft_ms, prefill_gpus = _milliseconds(f"{source}: prefill", ttft_ms, isl / prefill_rates)
    itl_ms, decode_gpus = _milliseconds(f"{source}: decode", itl_ms, batch / decode_rates)
    tp = target.tp or _measured_tp(source, prefill_gpus, decode_gpus)
    context_ms = float(_fit(np.stack([np.ones_like(batch), batch, batch * context], axis=1), itl_ms)[2])
    decodes = _means(np.maximum(1.0, np.round(batch)), np.maximum(1e-6, itl_ms - context_ms * batch * context))
    pair_ms = float(_fit(np.stack([np.ones_like(isl), isl, isl**2 / 2], axis=1), ttft_ms)[2])
    prefills = _means(np.round(isl), ttft_ms - pair_ms * isl**2 / 2)
    largest = max(decodes)
    cells = decodes | {tokens: ms for tokens, ms in prefills.items() if tokens > largest}
    return _profile(
        target,
        tp,
        rest.kv_tokens,
        cells,
        context_ms,
        pair_ms,
        f"NVIDIA Dynamo's profiler ({source})",
        measured_batch=largest,
        measured_input=round(float(isl.max())),
    )


class VllmRun(BaseModel):
    """One result of ``vllm bench serve --save-result``: lengths in tokens, times in milliseconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    duration: float = Field(gt=0, lt=1e9, allow_inf_nan=False)
    completed: int = Field(ge=1)
    total_input_tokens: int = Field(ge=1)
    total_output_tokens: int = Field(ge=1)
    mean_ttft_ms: float = Field(gt=0, allow_inf_nan=False)
    mean_tpot_ms: float = Field(gt=0, allow_inf_nan=False)
    max_concurrency: int | None = None

    @model_validator(mode="after")
    def _a_token_each(self) -> "VllmRun":
        for name, tokens in (("input", self.total_input_tokens), ("output", self.total_output_tokens)):
            if tokens < self.completed:
                raise ValueError(f"{tokens} {name} tokens in {self.completed} requests: less than one each")
        return self

    @property
    def prompt(self) -> float:
        return self.total_input_tokens / self.completed

    @property
    def answer(self) -> float:
        return self.total_output_tokens / self.completed

    @property
    def decoding(self) -> float:
        """Mean requests decoding (Little's law)."""
        return (self.total_output_tokens - self.completed) / self.duration * self.mean_tpot_ms / 1e3


def from_vllm_bench(runs: Sequence[tuple[str, str]], target: Target) -> ProfileFile:
    """(file name, text) of several ``vllm bench serve`` results on one server, at different concurrencies and lengths.

    A decoder's iteration, in the mean: TPOT = a + b · batch + c · contexts + p · (prompt tokens arriving meanwhile).
    Runs of one request at a time add: TTFT = a + p · prompt. Straight in tokens: bends are not visible in means.
    """
    if target.tp is None or target.kv_tokens is None:
        raise ProfileError("vllm bench results name neither TP nor KV cache size: give both")
    found = [(name, _vllm_run(name, text)) for name, text in runs]
    if len(found) < LEAST_RUNS:
        raise ProfileError(f"{len(found)} vllm bench runs; at least {LEAST_RUNS} at different concurrencies are needed")
    rows, values = [], []
    for _, run in found:
        batch = max(1.0, run.decoding)
        prompts_meanwhile = run.total_input_tokens / run.duration * run.mean_tpot_ms / 1e3
        contexts = batch * (run.prompt + run.answer / 2)
        rows.append([1.0, batch, contexts, prompts_meanwhile])
        values.append(run.mean_tpot_ms)
        if run.max_concurrency == 1:
            rows.append([1.0, 0.0, 0.0, run.prompt])
            values.append(run.mean_ttft_ms)
    scale = 1 / np.array(values)
    matrix = np.array(rows) * scale[:, None]
    if np.linalg.matrix_rank(matrix / np.linalg.norm(matrix, axis=0), tol=1e-3) < 4:
        raise ProfileError("the vllm bench runs are too alike: vary --max-concurrency, input and output lengths")
    least_ms, decoder_ms, context_ms, prompt_ms = _fit(matrix, np.ones(len(values))).tolist()
    if least_ms <= 0 or prompt_ms <= 0:
        raise ProfileError(
            "the vllm bench runs show no cost of an iteration or of a prompt token: add runs of 1 at a time"
        )
    largest = max(1, math.floor(max(run.decoding for _, run in found)))
    longest = math.floor(max(run.prompt for _, run in found))
    if longest <= largest:
        raise ProfileError(f"prompts of {longest} tokens are too short beside {largest} decoding to tell prefill speed")
    cells = {1: least_ms + decoder_ms, largest: least_ms + decoder_ms * largest}
    cells[longest] = least_ms + decoder_ms * largest + prompt_ms * (longest - largest)
    names = ", ".join(name for name, _ in found)
    return _profile(
        target,
        target.tp,
        target.kv_tokens,
        cells,
        float(context_ms),
        0.0,
        f"vllm bench serve ({names})",
        measured_batch=largest,
        measured_input=longest,
    )


def _vllm_run(name: str, text: str) -> VllmRun:
    content = parse_json(text, name, ProfileError)
    if isinstance(content, Mapping) and "mean_tpot_ms" not in content:
        for field, command in (("avg_latency", "latency"), ("tokens_per_second", "throughput")):
            if field in content:
                raise ProfileError(
                    f"{name}: a result of `vllm bench {command}`, which tells no TTFT or TPOT: use serve"
                )
    return _checked(VllmRun, content, name)


def _checked(model: type[Model], content: Any, source: str) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = [
            f"{source}: {'.'.join(map(str, item['loc'])) or 'file'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ProfileError("\n".join(faults)) from None


def _column(name: str, values: Sequence[float], length: int) -> Floats:
    column = np.array(values, dtype=np.float64)
    if len(column) != length:
        raise ProfileError(f"{name}: {len(column)} values beside {length}")
    if not np.all(np.isfinite(column)) or np.any(column <= 0):
        at = int(np.flatnonzero(~np.isfinite(column) | (column <= 0))[0])
        raise ProfileError(f"{name}: value {at} is {column[at]:g}; it must be finite and above 0")
    return column


def _columns(name: str, *columns: Sequence[float]) -> tuple[Floats, ...]:
    return tuple(_column(f"{name}: column {number}", column, len(columns[0])) for number, column in enumerate(columns))


def _milliseconds(name: str, times: Floats, seconds_on_one_gpu: Floats) -> tuple[Floats, float]:
    """(times in ms, GPUs of the engine). Throughput per GPU says both how many GPUs ran and the unit: some versions
    of the profiler write ms and some seconds."""
    for unit_ms in (1.0, 1e3):
        gpus = float(np.median(seconds_on_one_gpu / (times * unit_ms / 1e3)))
        if FEWEST_GPUS <= gpus <= MOST_GPUS:
            return times * unit_ms, gpus
    raise ProfileError(f"{name}: times and throughputs per GPU do not belong together: they make {gpus:.3g} GPUs")


def _measured_tp(source: str, prefill_gpus: float, decode_gpus: float) -> int:
    """Decode throughputs include pauses, so they only have to be nearer to this power of two than to another."""
    prefill_tp, decode_tp = (2 ** round(math.log2(gpus)) for gpus in (prefill_gpus, decode_gpus))
    if max(1, prefill_tp) != max(1, decode_tp):
        raise ProfileError(
            f"{source}: prefill was measured on {prefill_gpus:.2f} GPUs and decode on {decode_gpus:.2f}: "
            "a replica that does both needs both at one TP; give the TP to take them as such"
        )
    return int(max(1, prefill_tp))


def _means(tokens: Floats, values: Floats) -> dict[int, float]:
    return {int(at): float(values[tokens == at].mean()) for at in np.unique(tokens)}


def _profile(
    target: Target,
    tp: int,
    kv_tokens: int,
    cells: Mapping[int, float],
    context_ms: float,
    pair_ms: float,
    source: str,
    measured_batch: int,
    measured_input: int,
) -> ProfileFile:
    tokens = sorted(cells)
    durations = np.exp(pooled(np.log([cells[at] for at in tokens])))
    inside = [(at, ms) for at, ms in zip(tokens, durations.tolist(), strict=True) if at <= LARGEST_PASS]
    gpu, clock = target.gpu, target.clock_mhz
    return ProfileFile(
        schema_=SCHEMA,
        name=target.name,
        source=source,
        notes=(
            f"the clock was not recorded: taken to be {clock} MHz",
            "no clock but that one was measured, and no power at all",
        ),
        gpu=GpuPart(
            name=gpu.name,
            idle_w=gpu.idle_w,
            context_w=gpu.context_w,
            power_limit_w=gpu.power_limit_w,
            settle_ms=gpu.settle_ns / 1e6,
            mem_w=gpu.mem_w,
            sm_w=gpu.sm_w,
        ),
        batch_tokens=inside[-1][0],
        freqs_mhz=(clock,),
        replicas=(ReplicaPart(tp=tp, kv_tokens=kv_tokens, context_ns_per_token=context_ms * 1e6),),
        shapes=(
            ShapePart(
                tp=tp,
                freq_mhz=clock,
                attention_ps_per_pair=pair_ms * 1e9,
                points=tuple(PointPart(tokens=at, iteration_ms=ms) for at, ms in inside),
            ),
        ),
        measured_batch=measured_batch,
        measured_input=measured_input,
    )


def _fit(matrix: Floats, values: Floats) -> Floats:
    """Least-squares coefficients, none negative. scipy takes 0.4 s to load: only who imports a profile waits."""
    from scipy.optimize import nnls

    coefficients: Floats = nnls(matrix, values)[0]
    return coefficients
