"""The commands of docs/what_if.md, run as they stand there, on a small log of the shape that the page describes."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wattray.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "what_if.md"


def test_an_operators_questions_are_two_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        f"2024-05-01T{i // 60:02d}:{i % 60:02d}:00.5,{'abc'[i % 3]},{300 + 7 * i % 3000},{20 + i % 90}"
        for i in range(240)
    ]
    (tmp_path / "requests.csv").write_text("ts,team,prompt_tokens,completion_tokens\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^wattray (.*)$", PAGE.read_text().split("```console")[1].split("```")[0], re.MULTILINE)
    told = []
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == 0, done.output
        told.append(" ".join(done.output.split()))
    simulated, used = told
    assert "SLO: TTFT 1 / 1 / 1 s" in simulated
    assert "mean TBT 60 ms" in simulated
    assert "right-sizing: 8xTP4@1980 to single-pool" in simulated
    assert "8 x TP4; mean clock 1980 MHz" in simulated
    assert all(f" {team} " in used for team in "abc")
    assert {"what-if.html", "plotly.min.js", "kept"} <= {path.name for path in tmp_path.iterdir()}
