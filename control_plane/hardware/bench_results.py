"""Results of load generators as runs to compare a profile with: ``vllm bench serve``, GuideLLM and AIPerf.

Each gives means over a run at one concurrency. Errors name the file and the field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.hardware.profile_file import ProfileError
from control_plane.text_edges import parse_json


@dataclass(frozen=True, slots=True)
class BenchRun:
    """Means over one run: tokens a request, requests in flight, seconds."""

    name: str
    tool: str
    concurrency: float
    prompt_tokens: float
    answer_tokens: float
    ttft_s: float
    tpot_s: float
    requests: int


def read_runs(name: str, text: str) -> Sequence[BenchRun]:
    """The runs in one result file. Raises ProfileError where it is none of the three or lacks what a comparison
    needs."""
    content = parse_json(text, name, ProfileError)
    if not isinstance(content, Mapping):
        raise ProfileError(f"{name}: a result of vllm bench serve, GuideLLM or AIPerf is a JSON object")
    if isinstance(content.get("benchmarks"), Sequence):
        return _guidellm(name, content["benchmarks"])
    if "time_to_first_token" in content:
        return [_aiperf(name, content)]
    if "mean_tpot_ms" in content:
        return [_vllm(name, content)]
    raise ProfileError(f"{name}: neither vllm bench serve (mean_tpot_ms), GuideLLM (benchmarks) nor AIPerf")


def _vllm(name: str, content: Mapping[str, Any]) -> BenchRun:
    completed = _number(name, content, "completed")
    prompt = _number(name, content, "total_input_tokens") / completed
    answer = _number(name, content, "total_output_tokens") / completed
    for what, tokens in (("input", prompt), ("output", answer)):
        if tokens < 1:
            raise ProfileError(f"{name}: total_{what}_tokens: {tokens:g} a request is less than one")
    ttft_s = _number(name, content, "mean_ttft_ms") / 1e3
    tpot_s = _number(name, content, "mean_tpot_ms") / 1e3
    rate = completed / _number(name, content, "duration")
    # Little's law where no limit was set: requests in flight are their rate times how long each takes.
    in_flight = min(completed, rate * (ttft_s + max(0.0, answer - 1) * tpot_s))
    if content.get("max_concurrency") is not None:
        in_flight = min(completed, _number(name, content, "max_concurrency"))
    return BenchRun(name, "vllm bench", in_flight, prompt, answer, ttft_s, tpot_s, int(completed))


def _guidellm(name: str, benchmarks: Sequence[Any]) -> Sequence[BenchRun]:
    runs = []
    for number, benchmark in enumerate(benchmarks):
        where = f"{name}: benchmarks.{number}"
        if not isinstance(benchmark, Mapping) or not isinstance(benchmark.get("metrics"), Mapping):
            raise ProfileError(f"{where}.metrics is missing")
        metrics = benchmark["metrics"]
        mean = {key: _guide_mean(where, metrics, key) for key in _GUIDE_FIELDS}
        count = benchmark.get("request_totals", {})
        requests = count.get("successful", 0) if isinstance(count, Mapping) else 0
        runs.append(
            BenchRun(
                f"{name}#{number}",
                "GuideLLM",
                mean["request_concurrency"],
                mean["prompt_token_count"],
                mean["output_token_count"],
                mean["time_to_first_token_ms"] / 1e3,
                mean["inter_token_latency_ms"] / 1e3,
                int(requests),
            )
        )
    if not runs:
        raise ProfileError(f"{name}: benchmarks is empty")
    return runs


_GUIDE_FIELDS = (
    "request_concurrency",
    "prompt_token_count",
    "output_token_count",
    "time_to_first_token_ms",
    "inter_token_latency_ms",
)


def _guide_mean(where: str, metrics: Mapping[str, Any], field: str) -> float:
    part = metrics.get(field)
    if isinstance(part, Mapping) and isinstance(part.get("successful"), Mapping):
        return _number(f"{where}.metrics.{field}.successful", part["successful"], "mean")
    raise ProfileError(f"{where}.metrics.{field}.successful is missing")


_AIPERF_MS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "ns": 1e-6}


def _aiperf(name: str, content: Mapping[str, Any]) -> BenchRun:
    ttft_ms, itl_ms = (_aiperf_ms(name, content, key) for key in ("time_to_first_token", "inter_token_latency"))
    prompt, answer = (_aiperf_mean(name, content, key) for key in ("input_sequence_length", "output_sequence_length"))
    rate = _aiperf_mean(name, content, "request_throughput")
    config = content.get("input_config")
    loadgen = config.get("loadgen") if isinstance(config, Mapping) else None
    given = loadgen.get("concurrency") if isinstance(loadgen, Mapping) else None
    in_flight = rate * (ttft_ms + max(0.0, answer - 1) * itl_ms) / 1e3
    if given is not None:
        in_flight = _number(f"{name}: input_config.loadgen", loadgen or {}, "concurrency")
    count = _aiperf_mean(name, content, "request_count") if "request_count" in content else 0
    return BenchRun(name, "AIPerf", in_flight, prompt, answer, ttft_ms / 1e3, itl_ms / 1e3, int(count))


def _aiperf_mean(name: str, content: Mapping[str, Any], field: str) -> float:
    part = content.get(field)
    if not isinstance(part, Mapping):
        raise ProfileError(f"{name}: {field} is missing")
    return _number(f"{name}: {field}", part, "avg")


def _aiperf_ms(name: str, content: Mapping[str, Any], field: str) -> float:
    value = _aiperf_mean(name, content, field)
    unit = content[field].get("unit", "ms")
    if unit not in _AIPERF_MS:
        raise ProfileError(f"{name}: {field}.unit is {unit!r}; known are {', '.join(_AIPERF_MS)}")
    return value * _AIPERF_MS[unit]


def _number(name: str, content: Mapping[str, Any], field: str) -> float:
    value = content.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProfileError(f"{name}: {field}: a number is expected, got {value!r:.40}")
    if not 0 < value < 1e12:
        raise ProfileError(f"{name}: {field}: {value:g} must be above 0 and finite")
    return float(value)
