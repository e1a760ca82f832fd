"""Profiles composed from step times: by a hand-written database, and by NVIDIA's where it is installed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from control_plane.domain import ClassLoad, InputClass, Load, Shape
from control_plane.hardware.gpu_power import SHAPE_ONLY, gpu_power, policy_clocks, scaled
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_build import CURVE_TOLERANCE, Build, build_profile, compose, kept_points
from control_plane.hardware.profile_file import ProfileError, dump_profile, parse_profile
from wattray.cli import app

RUNNER = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"})
needs_database = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="the optional extra `profiles` is not installed"
)


class Straight:
    """A database of one machine: 8 ms to read the weights, 0.05 ms a token beyond, with a tile's fall at 512."""

    kv_tokens = 200_000
    reading_ms = 6.0

    def __init__(self, fall: float = 0.05) -> None:
        self.fall = fall

    def decode_ms(self, batch: int, context: int) -> float:
        return self._whole(batch) + 2e-5 * batch * context

    def prefill_ms(self, tokens: int, before: int) -> float:
        return self._whole(tokens) + 1e-7 * (tokens * before + tokens * (tokens + 1) / 2)

    def waiting_ms(self, tokens: int) -> float:
        return 0.5

    def _whole(self, tokens: int) -> float:
        ms = (8.0**2 + (0.05 * tokens) ** 2) ** 0.5
        return ms * (1 - self.fall) if tokens >= 512 else ms


def built(gpu: str = "h100_sxm", limit_w: float = 700.0, **options: float) -> MachineProfile:
    build = Build("made", gpu_power(gpu, limit_w), "a test", "now", **options)  # type: ignore[arg-type]
    return parse_profile(dump_profile(build_profile(build, {1: Straight(), 2: Straight()})))


def test_contexts_and_pairs_are_found_and_a_fall_is_pooled() -> None:
    composed = compose(Straight(), 2048, 256)
    assert composed.context_ms == pytest.approx(2e-5, rel=0.01)
    assert composed.pair_ms == pytest.approx(1e-7, rel=0.01)
    assert np.all(np.diff(composed.alpha_ms) >= 0)
    assert composed.alpha_ms[63] == pytest.approx((64 + 3.2**2) ** 0.5, rel=0.01)
    assert np.all((composed.products >= 0) & (composed.products + composed.reading <= 1.0001))


def test_the_file_keeps_what_straight_lines_need() -> None:
    ms = np.maximum.accumulate(np.array([Straight()._whole(tokens) for tokens in range(1, 2305)]))
    kept = kept_points(ms)
    assert len(kept) < 60
    again = np.interp(np.arange(len(ms)), kept, ms[kept])
    assert np.max(np.abs(again / ms - 1)) <= CURVE_TOLERANCE


def test_a_built_profile_obeys_the_laws_of_the_embedded_ones() -> None:
    profile = built()
    for tp in profile.tps:
        tables = np.array([profile.times(tp).alpha_ps(freq) for freq in profile.freqs_mhz])
        assert np.all(np.diff(tables, axis=1) >= 0)
        assert np.all(np.diff(tables, axis=0) <= 0)
        watts = np.array([profile.machine(Shape(tp, freq)).power_w for freq in profile.freqs_mhz])
        assert np.all(np.diff(watts, axis=0) >= -1e-6)
        assert watts.max() <= tp * profile.gpu.power_limit_w + 1e-6
    assert profile.evidence.measured_freqs_mhz == (1980,)
    (told, *_) = profile.beyond(Shape(1, 795), Load({InputClass.SHORT: ClassLoad(1.0, 100, 50)}))
    assert told.startswith("clock 795 MHz is scaled by physics (measured: 1980)")


def test_the_power_limit_holds_the_clock_of_built_prefills() -> None:
    profile = built()
    top, below = (profile.machine(Shape(1, freq)) for freq in profile.freqs_mhz[:-3:-1])
    assert top.power_w[2048] == pytest.approx(700.0)
    assert top.iteration_s[2048] * 1e3 > 1.1 * Straight()._whole(2048)
    assert top.iteration_s[1] * 1e3 == pytest.approx(Straight()._whole(1), rel=0.01)
    assert below.iteration_s[2048] == pytest.approx(top.iteration_s[2048], rel=0.05)


def test_the_hosts_time_is_added_to_every_iteration() -> None:
    without, with_host = (built(overhead_ms=ms).machine(Shape(1, 1980)).iteration_s for ms in (0.0, 2.0))
    for tokens in (1, 64):
        assert with_host[tokens] - without[tokens] == pytest.approx(0.002, abs=1e-4)


def test_a_database_without_times_is_refused() -> None:
    with pytest.raises(ProfileError, match="no times"):
        compose(type("Broken", (Straight,), {"decode_ms": lambda *_: float("nan")})(), 2048, 256)


def test_powers_say_where_they_come_from_and_when_they_are_shape_only() -> None:
    assert all(constant.error < 0.1 for constant in gpu_power("h100_sxm", 700.0).constants.values())
    ours, theirs = built(), built("a100_sxm", 400.0)
    assert SHAPE_ONLY not in ours.evidence.notes
    assert SHAPE_ONLY in theirs.evidence.notes
    assert theirs.evidence.errors["power"] == 0.30
    assert max(theirs.machine(Shape(1, theirs.freqs_mhz[-1])).power_w) == pytest.approx(400.0)
    with pytest.raises(KeyError):
        gpu_power("abacus", 5.0)


@pytest.mark.parametrize("top_mhz", [1410, 1965, 2520])
def test_policy_clocks_are_seven_that_the_gpu_has(top_mhz: int) -> None:
    power = scaled("x", 400.0, top_mhz)
    clocks = policy_clocks(power)
    assert len(clocks) == 7
    assert clocks[-1] == top_mhz
    assert set(clocks) <= set(power.freqs_mhz)


def run(*arguments: str) -> tuple[int, str]:
    found = RUNNER.invoke(app, ["profile", *arguments])
    return found.exit_code, found.output


@needs_database
def test_the_70b_profile_is_built_used_and_near_the_measured_gpu(tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    code, said = run("build", "--model", "Llama-3.1-70B-Instruct", "--gpu", "h100_sxm", "--tp", "1,4", "-o", str(out))
    assert code == 0, said
    assert "TP1 left out" in said
    profile = parse_profile(out.read_text())
    assert profile.tps == (4,)
    measured_ms = {1: 15.8, 64: 17.4, 128: 19.3}  # one H100's share, all-reduces not in it
    machine = profile.machine(Shape(4, 1980))
    for batch, ms in measured_ms.items():
        modelled_ms = (machine.iteration_s[batch] + machine.context_s * batch * 512) * 1e3
        assert 0.93 * ms < modelled_ms < 1.25 * ms
    code, said = run("show", str(out), "--json")
    assert code == 0
    assert json.loads(said)["kv_tokens"]["4"] > 300_000


@needs_database
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model", "llama-9b", "--gpu", "h100_sxm"), "meta-llama/Meta-Llama-3.1-8B"),
        (("--model", "Llama-3.1-8B", "--gpu", "h900"), "--gpu 'h900' is not in the database: it has"),
        (("--model", "Llama-3.1-8B", "--gpu", "b60"), "--gpu 'b60': its clocks are not known to wattray"),
        (("--model", "Llama-3.1-8B", "--gpu", "h100_sxm", "--engine", "ollama"), "known are vllm, trtllm, sglang"),
        (("--model", "Llama-3.1-8B", "--gpu", "h100_sxm", "--engine-version", "0.1"), "the database has 0.24.0"),
        (("--model", "Llama-3.1-8B", "--gpu", "h100_sxm", "--tp", "two"), "--tp 'two'"),
        (("--model", "Llama-3.1-8B", "--gpu", "h100_sxm", "--tp", "3"), "TP3: num_heads 32 should be divisible"),
        (("--model", "Llama-3.1-70B", "--gpu", "h100_sxm", "--tp", "1"), "TP1: no KV budget"),
        (("--model", "Llama-3.1-8B", "--gpu", "h100_sxm", "--dtype", "fp3"), "--dtype 'fp3'"),
        (("--model", "Llama-3.1-8B", "--gpu", "h100_sxm", "--kv-tokens", "3"), "--kv-tokens 3"),
        (("--model", "Llama-3.1-8B", "--gpu", "h100_sxm", "--overhead-ms", "nan"), "--overhead-ms nan"),
    ],
)
def test_what_cannot_be_built_is_told_in_a_line(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    code, said = run("build", *options, "-o", str(tmp_path / "p.json"))
    assert code == 2
    assert told in said.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


@needs_database
def test_a_folder_is_a_model_and_one_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Tiny"]}')
    code, said = run("build", "--model", str(folder), "--gpu", "h100_sxm", "-o", str(tmp_path / "p.json"))
    assert code == 2
    assert "its configuration cannot be used" in said
    code, said = run("build", "--model", "Mixtral-8x7B-v0.1", "--gpu", "h100_sxm", "-o", str(tmp_path / "p.json"))
    assert code == 2
    assert "is no folder with config.json and not among the known" in said


def test_without_the_extra_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aiconfigurator_core" else real(name))
    code, said = run("build", "--model", "x", "--gpu", "h100_sxm", "-o", str(tmp_path / "p.json"))
    assert code == 2
    assert "pip install 'wattray[profiles]'" in said
