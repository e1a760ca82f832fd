"""``wattray profile build``: a profile of a model on a GPU from NVIDIA's database, in seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from control_plane.hardware.gpu_power import KNOWN, GpuPower, gpu_power, policy_clocks
from control_plane.hardware.profile_build import Build, build_profile
from control_plane.hardware.profile_file import ProfileError, ProfileFile, dump_profile, parse_profile
from wattray.faults import faults_explained
from wattray.output_files import check_outputs, write_text
from wattray.step_database import (
    BACKENDS,
    DTYPES,
    KV_DTYPES,
    DatabaseTimes,
    EngineSpec,
    sdk,
    step_times,
    system_spec,
    version_of,
)

OUT = Console()

OVERHEAD_MS = {"vllm": 0.5, "trtllm": 0.5, "sglang": 0.5}
"""What the engine's host adds to an iteration. Cells of the database's end-to-end rows ask for 0 to 2.5 ms
(docs/profiles.md): with 0.5 their median error is least."""
LEAST_KV_TOKENS = 40_000
"""Of five long prompts: with fewer the queue for the KV cache decides, which the closed forms do not see."""
TIME_ERRORS = {"vllm": 0.12, "trtllm": 0.20, "sglang": 0.15}
"""Median error of TPOT against measured end-to-end rows of that engine (docs/profiles.md)."""


def build(
    model: Annotated[str, typer.Option(help="A model's name, or a folder with its config.json.")],
    gpu: Annotated[str, typer.Option(help="The GPU as the database names it: h100_sxm, h200_sxm, a100_sxm, …")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The profile file to write.")],
    engine: Annotated[str, typer.Option(help="vllm, trtllm or sglang.")] = "vllm",
    engine_version: Annotated[str | None, typer.Option(help="Of the database; its current one if not given.")] = None,
    tp: Annotated[str, typer.Option(help="Tensor parallelisms; those that the model does not fit are left out.")] = (
        "1,2,4,8"
    ),
    dtype: Annotated[str | None, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")] = None,
    moe_dtype: Annotated[str | None, typer.Option(help="Of an MoE's experts, where it differs.")] = None,
    kv_dtype: Annotated[str | None, typer.Option(help=f"Of the KV cache: {', '.join(KV_DTYPES)}.")] = None,
    moe_tp: Annotated[int | None, typer.Option(help="GPUs that share each expert; all if not given.")] = None,
    moe_ep: Annotated[int | None, typer.Option(help="GPUs among which the experts are dealt out.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Most tokens in an iteration (max_num_batched_tokens).")] = 2048,
    batch_requests: Annotated[int, typer.Option(help="Most requests in a batch (max_num_seqs).")] = 256,
    kv_tokens: Annotated[int | None, typer.Option(help="The KV cache of one replica; estimated if not given.")] = None,
    overhead_ms: Annotated[float | None, typer.Option(help="Of the engine's host, an iteration.")] = None,
    name: Annotated[str | None, typer.Option(help="The profile's name.")] = None,
) -> None:
    """A profile from NVIDIA's AIConfigurator database (optional extra `profiles`): no GPU needed."""
    with faults_explained():
        check_outputs(out=out)
        sdk()
        spec = _spec(model, gpu, engine, engine_version, dtype, moe_dtype, kv_dtype, moe_tp, moe_ep)
        _in_range("batch-tokens", batch_tokens, 64, 65_536)
        _in_range("batch-requests", batch_requests, 1, 4096)
        overhead = OVERHEAD_MS[engine] if overhead_ms is None else overhead_ms
        if not 0 <= overhead <= 100:
            raise ProfileError(f"--overhead-ms {overhead:g} must be at least 0 and at most 100")
        power = _power(gpu)
        version = version_of(gpu, engine, engine_version)
        least_kv_tokens = LEAST_KV_TOKENS if kv_tokens is None else 1
        times, left_out = _times(spec, _parallelisms(tp), batch_tokens, batch_requests, least_kv_tokens)
        notes = [f"TP{one} left out: {why}" for one, why in left_out.items()]
        notes.append(f"the engine's host adds {overhead:g} ms to an iteration")
        file = build_profile(
            Build(
                name=name or f"{Path(model).name.lower()}-{gpu}-{engine}",
                power=power,
                source=f"AIConfigurator database, {engine} {version} on {gpu}",
                era=f"{engine} {version}",
                notes=notes,
                batch_tokens=batch_tokens,
                batch_requests=batch_requests,
                overhead_ms=overhead,
                freqs_mhz=policy_clocks(power),
                errors={"time": TIME_ERRORS[engine]},
            ),
            times,
        )
        if kv_tokens is not None:
            _in_range("kv-tokens", kv_tokens, batch_tokens, 10**12)
            parts = tuple(part.model_copy(update={"kv_tokens": kv_tokens}) for part in file.replicas)
            file = file.model_copy(update={"replicas": parts})
        _write(file, out)


def _spec(
    model: str,
    gpu: str,
    engine: str,
    version: str | None,
    dtype: str | None,
    moe_dtype: str | None,
    kv_dtype: str | None,
    moe_tp: int | None,
    moe_ep: int | None,
) -> EngineSpec:
    """Raises ProfileError for an unknown engine or type."""
    if engine not in BACKENDS:
        raise ProfileError(f"--engine {engine!r}: known are {', '.join(BACKENDS)}")
    for option, value, known in (("dtype", dtype, DTYPES), ("kv-dtype", kv_dtype, KV_DTYPES)):
        if value is not None and value not in known:
            raise ProfileError(f"--{option} {value!r}: known are {', '.join(known)}")
    return EngineSpec(model, gpu, engine, version, dtype, moe_dtype or dtype, kv_dtype, moe_tp, moe_ep)


def _power(gpu: str) -> GpuPower:
    """Raises ProfileError for a GPU that the database or our clocks do not know."""
    limit_w = float(system_spec(gpu)["gpu"]["power"])
    try:
        return gpu_power(gpu, limit_w)
    except KeyError:
        raise ProfileError(
            f"--gpu {gpu!r}: its clocks are not known to wattray; known are {', '.join(KNOWN)}"
        ) from None


def _parallelisms(text: str) -> Sequence[int]:
    found = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 64 for part in found):
        raise ProfileError(f"--tp {text!r}: numbers between 1 and 64 with commas between, such as 1,2,4,8")
    return sorted({int(part) for part in found})


def _times(
    spec: EngineSpec, tps: Sequence[int], batch_tokens: int, batch_requests: int, least_kv_tokens: int
) -> tuple[dict[int, DatabaseTimes], dict[int, str]]:
    """Of each TP, and why others are left out. Raises ProfileError where none is left."""
    times: dict[int, DatabaseTimes] = {}
    left_out: dict[int, str] = {}
    for tp in tps:
        try:
            steps = step_times(spec, tp, batch_tokens, batch_requests)
        except ProfileError as error:
            left_out[tp] = str(error)
            continue
        if steps.kv_tokens < least_kv_tokens:
            left_out[tp] = f"{steps.kv_tokens:,} tokens of KV cache hold too few long requests to plan with"
            continue
        times[tp] = steps
    if not times:
        raise ProfileError("\n".join(left_out.values()))
    return times, left_out


def _in_range(option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ProfileError(f"--{option} {value} must be at least {least} and at most {most}")


def _write(file: ProfileFile, out: Path) -> None:
    text = dump_profile(file)
    parse_profile(text, str(out))
    write_text(out, text)
    kv = ", ".join(f"TP{part.tp} {part.kv_tokens:,} KV tokens" for part in file.replicas)
    OUT.print(f"wrote {out}: {file.name}; {kv}", markup=False, highlight=False)
    for note in file.notes:
        OUT.print(f"  note: {note}", markup=False, highlight=False)
