"""NVIDIA's AIConfigurator database as step times: per-operation times measured on many GPUs and engines.

The optional extra `profiles` brings it (package ``aiconfigurator-core``, Apache-2.0). Nothing of it is copied, and
nothing is downloaded: a model is one of those whose configuration the package carries, or a folder with config.json.
"""

import difflib
import importlib
import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.hardware.profile_file import ProfileError

PACKAGE = "aiconfigurator_core"
HOW_TO_INSTALL = "pip install 'wattray[profiles]' (aiconfigurator-core, about 115 MB)"
BACKENDS = ("vllm", "trtllm", "sglang")
DTYPES = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "fp8": "fp8", "fp8-block": "fp8_block", "fp8-static": "fp8_static",
    "fp4": "nvfp4", "nvfp4": "nvfp4", "int8": "int8_wo", "int4": "int4_wo",
}  # fmt: skip
KV_DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp8": "fp8", "int8": "int8"}
MEMORY_RATE = 0.9
"""Of the data sheet's memory bandwidth, what reading weights reaches."""
EXCHANGES = re.compile(r"_ar(_|$)|allreduce|p2p|dispatch|all2all|a2a|allgather|reduce_scatter")
"""Names of operations that wait for other GPUs."""


REFUSALS = (ValueError, LookupError, RuntimeError, AttributeError, AssertionError, ArithmeticError, TypeError, OSError)
"""What the package raises where it has no data for a model or cannot read it."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which engine runs which model on which GPU. Quantisation names are those of ``DTYPES``, or the package's own;
    None is what the model's configuration says."""

    model: str
    system: str
    backend: str = "vllm"
    version: str | None = None
    dtype: str | None = None
    moe_dtype: str | None = None
    kv_dtype: str | None = None
    moe_tp: int | None = None
    """Of the experts; all GPUs where neither this nor ``moe_ep`` is given."""
    moe_ep: int | None = None
    attention_dp: int = 1
    memory_share: float | None = None
    """Of the GPU's memory that the engine uses; its own default where not given."""


class DatabaseTimes:
    """One tensor parallelism of one engine: implements ``profile_build.StepTimes``."""

    def __init__(self, handle: Any, kv_tokens: int, reading_ms: float) -> None:
        self._handle, self._kv_tokens, self._reading_ms = handle, kv_tokens, reading_ms

    @property
    def kv_tokens(self) -> int:
        return self._kv_tokens

    @property
    def reading_ms(self) -> float:
        return self._reading_ms

    def decode_ms(self, batch: int, context: int) -> float:
        return float(self._handle.decode_step_latency(batch, max(1, context - 1), 2))

    def prefill_ms(self, tokens: int, before: int) -> float:
        return float(self._handle.predict_prefill_latency(1, tokens + before, before))

    def mixed_ms(self, chunk: int, decoders: int, context: int) -> float:
        """A chunk of one prompt beside decoders of this many tokens each."""
        return float(self._handle.mixed_step_latency(chunk, decoders, max(1, context - 1), 2))

    def waiting_ms(self, tokens: int) -> float:
        operations = self._handle.decode_step_per_op(tokens, 1, 2)
        return float(sum(ms for name, ms, *_ in operations if EXCHANGES.search(name)))


def sdk() -> Any:
    """The package's facade. Raises ProfileError that says how to install it."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ProfileError(f"profile build needs the optional extra `profiles`: {HOW_TO_INSTALL}")
    # It warns of every fallback table that it loads, whether or not a query will use it.
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    return importlib.import_module(f"{PACKAGE}.sdk")


def folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ProfileError(f"the optional extra `profiles` is missing: {HOW_TO_INSTALL}")
    return Path(spec.origin).parent


def known_models() -> Sequence[str]:
    """The models whose configuration the package carries and reads from there: others it would download."""
    names = {path.name for path in (folder() / "model_configs").glob("*_config.json")}
    found = {name.removesuffix("_config.json") for name in names if not name.endswith("_hf_quant_config.json")}
    read = importlib.import_module(f"{PACKAGE}.sdk.common").DefaultHFModels
    return sorted(name for name in (one.replace("--", "/") for one in found) if name in read)


def known_systems() -> Sequence[str]:
    systems = folder() / "systems"
    return sorted(path.stem for path in systems.glob("*.yaml") if (systems / "data" / path.stem).is_dir())


def model_named(name: str) -> str:
    """A folder with config.json as it is, else the known model of that name, however it is spelled. Raises
    ProfileError with the nearest names."""
    if (Path(name) / "config.json").is_file():
        return name
    known = known_models()
    if name in known:
        return name
    spelled: dict[str, str] = {}
    for one in known:
        spelled.setdefault(_plain(one), one)
    found = spelled.get(_plain(name))
    if found is not None:
        return found
    near = difflib.get_close_matches(_plain(name), spelled, n=4, cutoff=0.4)
    told = ", ".join(spelled[one] for one in near) or f"{len(known)} models"
    raise ProfileError(f"--model {name!r} is no folder with config.json and not among the known, such as {told}")


def system_spec(system: str) -> Mapping[str, Any]:
    """What the database says of a GPU. Raises ProfileError for an unknown one."""
    if system not in known_systems():
        raise ProfileError(f"--gpu {system!r} is not in the database: it has {', '.join(known_systems())}")
    sdk()
    return dict(importlib.import_module(f"{PACKAGE}.sdk.perf_database").load_system_spec(system))


def version_of(system: str, backend: str, version: str | None) -> str:
    """The engine's version in the database. Raises ProfileError with those that it has."""
    database = importlib.import_module(f"{PACKAGE}.sdk.perf_database")
    try:
        return str(database.resolve_query_version(system, backend, version or "current"))
    except ValueError:
        slots = database.get_version_slots(system, backend) or {}
        has = ", ".join(f"{name} ({slot})" for slot, name in slots.items() if name) or "none"
        raise ProfileError(f"--engine-version {version}: for {backend} on {system} the database has {has}") from None


def step_times(spec: EngineSpec, tp: int, batch_tokens: int, batch_requests: int) -> DatabaseTimes:
    """Compile one tensor parallelism. Raises ProfileError where the database has no such engine, or where the model
    does not fit."""
    facade, gpu = sdk(), system_spec(spec.system)["gpu"]
    version = version_of(spec.system, spec.backend, spec.version)
    model = model_named(spec.model)
    told = f"{spec.model} on {spec.system}, {spec.backend} {version}, TP{tp}"
    try:
        experts = _experts(model)
    except REFUSALS as error:
        raise ProfileError(f"{told}: its configuration cannot be used: {_first_line(error)}") from None
    options: dict[str, Any] = {"tp_size": tp, "attention_dp_size": spec.attention_dp}
    if experts is not None:
        all_gpus = tp * spec.attention_dp
        options["moe_ep_size"] = spec.moe_ep or (1 if spec.moe_tp is None else all_gpus // spec.moe_tp)
        options["moe_tp_size"] = spec.moe_tp or all_gpus // options["moe_ep_size"]
    for option, value in (
        ("gemm_quant_mode", spec.dtype),
        ("moe_quant_mode", spec.moe_dtype),
        ("kvcache_quant_mode", spec.kv_dtype),
    ):
        if value is not None:
            options[option] = DTYPES.get(value, value)
    of_total = spec.backend != "trtllm"
    share = spec.memory_share or (0.92 if spec.backend == "vllm" else 0.88 if of_total else 0.9)
    try:
        handle = facade.EngineHandle.compile(model, spec.system, spec.backend, backend_version=version, **options)
        memory = facade.estimate_kv_cache(
            model,
            spec.system,
            spec.backend,
            version,
            max_num_tokens=batch_tokens,
            max_batch_size=batch_requests,
            memory_fraction_kind="of_total" if of_total else "of_free",
            memory_fraction_value=share,
            **options,
        )
        handle.decode_step_latency(1, 128, 2)
        handle.predict_prefill_latency(1, 128, 0)
    except REFUSALS as error:
        raise ProfileError(f"{told}: {_first_line(error)}") from None
    kv_tokens = int(memory["total_kv_size_tokens"]) * spec.attention_dp
    if kv_tokens < batch_tokens:
        raise ProfileError(f"{told}: the weights leave room for {kv_tokens} tokens of KV cache; use a higher TP")
    weights_bytes = memory["memory_breakdown"]["weights_bytes"] * (1.0 if experts is None else experts)
    return DatabaseTimes(handle, kv_tokens, weights_bytes / (gpu["mem_bw"] * MEMORY_RATE) * 1e3)


def _experts(model: str) -> float | None:
    """The share of an MoE's weights that one token reads; None for a dense model."""
    utils = importlib.import_module(f"{PACKAGE}.sdk.utils")
    config = utils.get_model_config_from_model_path(model)
    if not config["num_experts"]:
        return None
    experts = config["layers"] * config["num_experts"] * 3 * config["hidden_size"] * config["moe_inter_size"]
    rest = 4 * config["layers"] * config["hidden_size"] ** 2 + 2 * config["vocab"] * config["hidden_size"]
    return float((rest + experts * config["topk"] / config["num_experts"]) / (rest + experts))


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _plain(name: str) -> str:
    """A model's name without its owner, its spelling and what says how it was tuned."""
    text = name.lower().rsplit("/", 1)[-1].replace("_", "-").replace("meta-", "")
    return re.sub(r"-(instruct|chat|hf|it)$", "", text)
