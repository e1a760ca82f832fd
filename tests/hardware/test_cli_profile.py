"""``wattray profile``: what it prints and writes, and what it says of bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from control_plane.hardware.profiles import PROFILE_NAMES, load_profile
from wattray.cli_profile import profile_app

RUNNER = CliRunner()


def run(*arguments: str) -> tuple[int, str]:
    result = RUNNER.invoke(profile_app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


def write_dynamo(folder: Path) -> None:
    machine_s = load_profile("llama2-70b-h100-current").times(4).alpha_ps(1980)
    prompts = np.arange(100, 2100, 200)
    ttft_ms = np.array([machine_s[n] / 1e9 for n in prompts])
    batches, contexts = np.array([1.0, 16.0, 64.0, 1.0, 16.0, 64.0]), np.array([500.0] * 3 + [2000.0] * 3)
    itl_ms = np.array([machine_s[int(b)] / 1e9 for b in batches]) + 3e-5 * batches * contexts
    for name in ("selected_prefill_interpolation", "selected_decode_interpolation"):
        (folder / name).mkdir(parents=True)
    np.savez(
        folder / "selected_prefill_interpolation" / "raw_data.npz",
        prefill_isl=prompts,
        prefill_ttft=ttft_ms,
        prefill_thpt_per_gpu=prompts / ttft_ms * 1e3 / 4,
    )
    np.savez(
        folder / "selected_decode_interpolation" / "raw_data.npz",
        x_kv_usage=batches * contexts / 500_000,
        y_context_length=contexts,
        z_itl=itl_ms,
        z_thpt_per_gpu=batches / itl_ms * 1e3 / 4,
        max_kv_tokens=np.array([500_000]),
    )


def test_list_names_every_embedded_profile() -> None:
    code, output = run("list")
    assert code == 0
    assert all(name in output for name in PROFILE_NAMES)


def test_show_as_json_has_every_shape_and_table_1() -> None:
    code, output = run("show", "llama2-70b-h100-2023", "--json")
    assert code == 0
    shown = json.loads(output)
    assert len(shown["curves"]) == 9 * 3 * 7
    assert len(shown["table1"]) == 9
    assert shown["errors"]["prefill_held_out"] <= 0.06
    assert all(row["beyond"] for row in shown["curves"] if row["freq_mhz"] != 1980 and row["load_rps"] > 0)


def test_show_plots_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "profile.html"
    code, output = run("show", "llama8b-h200", "--plot", str(page))
    assert code == 0
    assert "Highest load under the SLO" in output
    text = page.read_text()
    assert "TTFT P99" in text
    assert 'src="http' not in text


def test_an_imported_dynamo_folder_can_be_shown(tmp_path: Path) -> None:
    write_dynamo(tmp_path / "results")
    out = tmp_path / "mine.json"
    code, output = run("import", "dynamo", str(tmp_path / "results"), "-o", str(out), "--name", "mine")
    assert code == 0, output
    assert "TP4" in output
    assert "no power" in output
    code, output = run("show", str(out), "--json")
    assert code == 0
    assert json.loads(output)["name"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nope"), "unknown profile 'nope'; known are"),
        (("import", "dynamo", "{folder}", "-o", "{folder}/x.json"), "no selected_prefill_interpolation/raw_data.npz"),
        (("import", "dynamo", "{folder}/a", "{folder}/b", "-o", "{folder}/x.json"), "No such file"),
        (
            ("import", "vllm-bench", "{folder}/bad.json", "--tp", "1", "--kv-tokens", "9", "-o", "{folder}/x.json"),
            "bad.json: line 1: not JSON",
        ),
        (("import", "dynamo", "{folder}", "--gpu", "b300", "-o", "{folder}/x.json"), "error:"),
        (("show", "{folder}/bad.json"), "bad.json: line 1"),
    ],
)
def test_bad_input_says_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "bad.json").write_text("nonsense")
    code, output = run(*(argument.format(folder=tmp_path) for argument in arguments))
    assert code == 2
    assert message in output
    assert "Traceback" not in output
