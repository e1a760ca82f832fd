"""A closed loop through the replica model, and the scripts that compare with measured iterations."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from control_plane.domain import Shape
from control_plane.hardware.closed_loop import served
from control_plane.hardware.profiles import load_profile
from control_plane.hardware.replica_model import ReplicaLimits

PROFILE = load_profile("llama8b-h200")
TIMES, LIMITS = PROFILE.times(1), PROFILE.limits(1)


def test_a_lone_request_takes_its_prefill_and_one_iteration_a_token() -> None:
    found = served(TIMES, LIMITS, 1980, 1, 1, (1000, 11), spread=1.0)
    machine = PROFILE.machine(Shape(1, 1980))
    assert found.mean_ttft_s == pytest.approx(machine.iteration_s[1000] + machine.attention_s * 1000 * 1001 / 2)
    contexts = np.arange(1001, 1011)
    assert found.mean_tpot_s == pytest.approx(np.mean(machine.iteration_s[1] + machine.context_s * contexts))
    assert found.kv_bound == 0.0


def test_the_opening_burst_waits_and_whoever_ends_is_followed_at_once() -> None:
    burst = served(TIMES, LIMITS, 1980, 16, 16, (2000, 100), spread=1.0)
    steady = served(TIMES, LIMITS, 1980, 16, 160, (2000, 100), spread=1.0)
    assert len(steady.ttft_s) == 160
    assert steady.median_ttft_s < burst.median_ttft_s
    assert steady.tokens_per_s == pytest.approx(160 * 100 / steady.duration_s)


def test_a_small_cache_bounds_the_batch() -> None:
    roomy = served(TIMES, LIMITS, 1980, 32, 96, (1000, 200), spread=1.0)
    tight = served(TIMES, ReplicaLimits(6_000, 256, 2048), 1980, 32, 96, (1000, 200), spread=1.0)
    assert roomy.kv_bound < 0.2 < tight.kv_bound
    assert tight.mean_ttft_s > 2 * roomy.mean_ttft_s


def test_mean_power_lies_between_idle_and_the_limit() -> None:
    watts = PROFILE.machine(Shape(1, 1980)).power_w
    found = served(TIMES, LIMITS, 1980, 8, 40, (500, 50), watts=watts)
    assert PROFILE.idle_power_w(1) < found.mean_power_w <= PROFILE.gpu.power_limit_w


def test_the_script_for_a_real_gpu_runs_dry(
    on_real_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "points.json"
    monkeypatch.setattr(sys, "argv", ["on_real_gpu.py", "--dry-run", "-o", str(out), "--repeats", "2"])
    on_real_gpu.main()
    points = json.loads(out.read_text())["points"]
    assert [point["kind"] for point in points] == ["decode", "prefill", "mixed"]
    assert all(point["ms"] > 0 for point in points)
    mean, apart = on_real_gpu.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert apart == pytest.approx(4.30 / 3**0.5)


def test_a_decoder_attends_to_its_own_new_entry(on_real_gpu: ModuleType) -> None:
    """The packed attention is that of every head on its own."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 16), torch.randn(2, 2, 8, 16)
    value = torch.randn(2, 2, 8, 16)
    packed = functional.scaled_dot_product_attention(query.view(2, 2, 2, 16), key, value).reshape(2, 4, 16)
    apart = functional.scaled_dot_product_attention(query.unsqueeze(2), key, value, enable_gqa=True).squeeze(2)
    assert torch.allclose(packed, apart, atol=1e-5)
    model = on_real_gpu.Transformer(on_real_gpu.TINY, "cpu", torch.float32)
    point = on_real_gpu.Point("decode", 2, 8, 0)
    cache = on_real_gpu.cache_for(on_real_gpu.TINY, point, "cpu", torch.float32)
    assert cache is not None
    before = cache.clone()
    model.iteration(point, cache)()
    assert torch.equal(before[:, :, :, :, :-1], cache[:, :, :, :, :-1])
    assert not torch.equal(before[..., -1, :], cache[..., -1, :])
