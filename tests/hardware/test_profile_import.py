"""Profiles from other tools: what a known machine would have measured must give that machine back."""

import json
from typing import Any

import numpy as np
import pytest

from control_plane.domain import Shape
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_file import ProfileError, dump_profile, parse_profile
from control_plane.hardware.profile_import import Target, from_dynamo, from_vllm_bench
from control_plane.hardware.profiles import load_profile
from control_plane.hardware.replica_model import PS_PER_S, ReplicaModel

TP, CLOCK = 4, 1980


@pytest.fixture(scope="module")
def known() -> MachineProfile:
    return load_profile("llama2-70b-h100-current")


def dynamo_raw(known: MachineProfile, seconds: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the profiler would write of the known machine: times in ms, or in s as some versions do."""
    machine = known.machine(Shape(TP, CLOCK))
    unit = 1.0 if seconds else 1e3
    prompts = np.arange(100, 2048, 200)
    ttft_s = np.array([machine.iteration_s[n] for n in prompts]) + machine.attention_s * prompts**2 / 2
    kv_tokens = machine.kv_tokens
    grid = [(batch, context) for context in (500.0, 2000.0, 4000.0) for batch in (1, 8, 16, 32, 64, 128)]
    itl_s = np.array([machine.iteration_s[b] + machine.context_s * b * c for b, c in grid])
    batches, contexts = np.array([b for b, _ in grid], dtype=float), np.array([c for _, c in grid])
    prefill = {
        "prefill_isl": prompts.tolist(),
        "prefill_ttft": (ttft_s * unit).tolist(),
        "prefill_thpt_per_gpu": (prompts / ttft_s / TP).tolist(),
    }
    decode = {
        "x_kv_usage": (batches * contexts / kv_tokens).tolist(),
        "y_context_length": contexts.tolist(),
        "z_itl": (itl_s * unit).tolist(),
        "z_thpt_per_gpu": (0.9 * batches / itl_s / TP).tolist(),
        "max_kv_tokens": [kv_tokens],
    }
    return prefill, decode


@pytest.mark.parametrize("seconds", [False, True])
def test_dynamos_profile_gives_the_machine_back(known: MachineProfile, seconds: bool) -> None:
    file = from_dynamo(*dynamo_raw(known, seconds), Target("imported"))
    profile = parse_profile(dump_profile(file))
    truth, got = known.machine(Shape(TP, CLOCK)), profile.machine(Shape(TP, CLOCK))
    for tokens in (1, 32, 128, 700, 1900):
        assert got.iteration_s[tokens] == pytest.approx(truth.iteration_s[tokens], rel=0.02)
    assert got.context_s == pytest.approx(truth.context_s, rel=0.02)
    assert got.attention_s == pytest.approx(truth.attention_s, rel=0.1)
    assert profile.limits(TP).kv_tokens == truth.kv_tokens
    assert profile.tps == (TP,)


def test_engines_of_different_sizes_are_refused_unless_asked_for(known: MachineProfile) -> None:
    prefill, decode = dynamo_raw(known)
    decode["z_thpt_per_gpu"] = [rate / 2 for rate in decode["z_thpt_per_gpu"]]
    with pytest.raises(ProfileError, match=r"prefill was measured on 4\.00 GPUs and decode on 8\.89"):
        from_dynamo(prefill, decode, Target("imported"))
    assert from_dynamo(prefill, decode, Target("imported", tp=4)).replicas[0].tp == 4


def test_dynamo_faults_name_the_array(known: MachineProfile) -> None:
    prefill, decode = dynamo_raw(known)
    with pytest.raises(ProfileError, match="prefill: prefill_ttft: Field required"):
        from_dynamo({name: prefill[name] for name in prefill if name != "prefill_ttft"}, decode, Target("x"))
    broken = {**decode, "z_itl": [*decode["z_itl"][:-1], float("nan")]}
    with pytest.raises(ProfileError, match="value 17 is nan"):
        from_dynamo(prefill, broken, Target("x"))
    with pytest.raises(ProfileError, match="17 values beside 18"):
        from_dynamo(prefill, {**decode, "z_itl": decode["z_itl"][:-1]}, Target("x"))


def bench_run(known: MachineProfile, concurrency: int, prompt: int, answer: int) -> str:
    """`vllm bench serve --max-concurrency` against the known machine: as many requests at a time."""
    model = ReplicaModel(known.times(TP), known.limits(TP))
    count, now_ps = 6 * concurrency + 4, 0
    submitted: dict[int, int] = {}
    first: dict[int, int] = {}
    ttft_s, tpot_s = [], []
    for key in range(concurrency):
        model.submit(key, prompt, answer + key % 7, 0)
        submitted[key] = 0
    following = concurrency
    while len(tpot_s) < count:
        iteration = model.begin(CLOCK)
        assert iteration is not None
        now_ps += iteration.duration_ps
        progress = model.complete()
        for key in map(int, map(str, progress.first_token)):
            first[key] = now_ps
            ttft_s.append((now_ps - submitted[key]) / PS_PER_S)
        for key in map(int, map(str, progress.finished)):
            tpot_s.append((now_ps - first[key]) / PS_PER_S / (answer + key % 7 - 1))
            model.submit(following, prompt, answer + following % 7, now_ps)
            submitted[following] = now_ps
            following += 1
    outputs = sum(answer + key % 7 for key in range(count))
    return json.dumps(
        {
            "backend": "vllm",
            "max_concurrency": concurrency,
            "duration": now_ps / PS_PER_S,
            "completed": count,
            "total_input_tokens": count * prompt,
            "total_output_tokens": outputs,
            "mean_ttft_ms": float(np.mean(ttft_s[:count]) * 1e3),
            "mean_tpot_ms": float(np.mean(tpot_s) * 1e3),
        }
    )


def test_vllm_bench_runs_give_the_machine_back(known: MachineProfile) -> None:
    runs = [
        (f"c{concurrency}-{prompt}-{answer}.json", bench_run(known, concurrency, prompt, answer))
        for concurrency, prompt, answer in (
            (1, 256, 128),
            (1, 2048, 64),
            (8, 512, 256),
            (16, 2048, 128),
            (32, 512, 256),
            (64, 128, 256),
            (64, 1024, 512),
        )
    ]
    file = from_vllm_bench(runs, Target("bench", tp=TP, kv_tokens=500_000))
    profile = parse_profile(dump_profile(file))
    truth, got = known.machine(Shape(TP, CLOCK)), profile.machine(Shape(TP, CLOCK))
    for tokens in (1, 16, 50, 1000, 2000):
        assert got.iteration_s[tokens] == pytest.approx(truth.iteration_s[tokens], rel=0.08)
    assert file.measured_input == 2048


def test_vllm_results_of_other_commands_are_refused() -> None:
    target = Target("bench", tp=1, kv_tokens=1000)
    with pytest.raises(ProfileError, match=r"a\.json: a result of `vllm bench latency`"):
        from_vllm_bench([("a.json", '{"avg_latency": 1.0, "latencies": []}')] * 3, target)
    with pytest.raises(ProfileError, match=r"a\.json: duration: Field required"):
        from_vllm_bench([("a.json", '{"mean_tpot_ms": 3}')] * 3, target)
    with pytest.raises(ProfileError, match=r"a\.json: line 1: not JSON"):
        from_vllm_bench([("a.json", "nope")] * 3, target)


def test_too_few_or_too_similar_runs_are_refused(known: MachineProfile) -> None:
    target = Target("bench", tp=TP, kv_tokens=500_000)
    one = ("a.json", bench_run(known, 4, 512, 32))
    with pytest.raises(ProfileError, match="at least 3"):
        from_vllm_bench([one, one], target)
    with pytest.raises(ProfileError, match="too alike"):
        from_vllm_bench([one] * 5, target)
    with pytest.raises(ProfileError, match="give both"):
        from_vllm_bench([one] * 5, Target("bench"))


def test_a_run_of_less_than_a_token_a_request_is_refused(known: MachineProfile) -> None:
    content = json.loads(bench_run(known, 1, 512, 32)) | {"total_output_tokens": 1}
    with pytest.raises(ProfileError, match=r"1 output tokens in .* requests: less than one each"):
        from_vllm_bench([("a.json", json.dumps(content))] * 3, Target("bench", tp=1, kv_tokens=1000))


def test_dynamos_units_and_lengths_are_checked(known: MachineProfile) -> None:
    prefill, decode = dynamo_raw(known)
    percent = decode | {"x_kv_usage": [100 * value for value in decode["x_kv_usage"]]}
    with pytest.raises(ProfileError, match=r"x_kv_usage: a share of the KV cache between 0 and 1 .* in percent"):
        from_dynamo(prefill, percent, Target("x"))
    alike = prefill | {"prefill_isl": [128.0] * len(prefill["prefill_isl"])}
    with pytest.raises(ProfileError, match=r"prefill_isl: prompts of at least three lengths are needed, got \[128.0\]"):
        from_dynamo(alike, decode, Target("x"))
