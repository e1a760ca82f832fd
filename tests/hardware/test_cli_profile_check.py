"""``wattray profile check`` and ``refine`` from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from control_plane.domain import Shape
from control_plane.hardware.closed_loop import served
from control_plane.hardware.profiles import load_profile
from wattray.cli_profile import profile_app

RUNNER = CliRunner()
PROFILE = load_profile("llama8b-h200")


def run(*arguments: object) -> tuple[int, str]:
    found = RUNNER.invoke(profile_app, [str(one) for one in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return found.exit_code, found.output


@pytest.fixture
def results(tmp_path: Path) -> list[object]:
    """Two runs of a machine that takes 1.3 times as long as the profile says, as vllm bench writes them."""
    arguments: list[object] = []
    watts = PROFILE.machine(Shape(1, 1980)).power_w
    for concurrency in (1, 16):
        found = served(PROFILE.times(1), PROFILE.limits(1), 1980, concurrency, 40, (1000, 100), watts=watts)
        path = tmp_path / f"c{concurrency}.json"
        content = {
            "completed": 40, "total_input_tokens": 36_000, "total_output_tokens": 3_600,
            "duration": 1.3 * found.duration_s, "max_concurrency": concurrency,
            "mean_ttft_ms": 1.3e3 * found.mean_ttft_s, "mean_tpot_ms": 1.3e3 * found.mean_tpot_s,
        }  # fmt: skip
        path.write_text(json.dumps(content))
        arguments += ["--against", path]
    return arguments


def test_a_profile_that_is_off_is_warned_of_and_plotted(results: list[object], tmp_path: Path) -> None:
    code, said = run("check", "llama8b-h200", *results, "--plot", tmp_path / "plot.html")
    assert code == 0, said
    assert "warning: the profile is 2" in said
    assert "plan with more headroom" in said
    assert "plotly" in (tmp_path / "plot.html").read_text()
    code, said = run("check", "llama8b-h200", *results, "--json")
    told = json.loads(said)
    assert told["agrees"] is False
    assert told["median_errors"]["time"] == pytest.approx(1 - 1 / 1.3, abs=0.03)


def test_a_refined_profile_agrees_and_says_what_was_done(results: list[object], tmp_path: Path) -> None:
    out = tmp_path / "better.json"
    code, said = run("refine", "llama8b-h200", *results, "-o", out)
    assert code == 0, said
    code, said = run("check", out, *results, "--json")
    assert json.loads(said)["median_errors"]["time"] < 0.05
    (note,) = [note for note in json.loads(out.read_text())["notes"] if note.startswith("corrected: decode x")]
    assert float(note.split(",")[0].removeprefix("corrected: decode x")) == pytest.approx(1.3, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("check", "llama2-70b-h100"), "give --tp: the profile has TP 2, 4, 8"),
        (("check", "llama8b-h200", "--tp", "4"), "--tp 4: the profile has TP 1"),
        (("check", "llama8b-h200", "--clock", "1000"), "--clock 1000: H200-SXM-141GB has no such clock"),
    ],
)
def test_a_shape_that_the_profile_has_not_is_told(results: list[object], arguments: tuple[str, ...], told: str) -> None:
    code, said = run(*arguments, *results)
    assert code == 2
    assert told in said


def test_power_of_one_gpu_for_a_replica_is_told(results: list[object], tmp_path: Path) -> None:
    code, said = run("refine", "llama8b-h200", *results, "--power-w", "100", "-o", tmp_path / "x.json")
    assert code == 2
    assert "is not above the 127 W of an idle replica" in said
