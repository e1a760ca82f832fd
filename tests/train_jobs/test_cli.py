"""`python -m train_jobs` as a person runs it, with nothing up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import ROOT, free_ports


def train(temp: Path, *asked: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "TMPDIR": str(temp), "RAY_TMPDIR": str(temp)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "train_jobs", *asked]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_where_nothing_is_up_it_says_how_to_start_it(tmp_path: Path) -> None:
    done = train(tmp_path)
    assert done.returncode == 2
    assert "no Ray answers at 'auto'; start the control plane with `wattray up --config FILE`" in done.stderr


def test_a_named_ray_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    done = train(tmp_path, "--address", address)
    assert done.returncode == 2
    assert f"no Ray answers at '{address}'" in done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("iteratoins: 3", "unknown field 'iteratoins'; did you mean 'iterations'?"),
        ("schedule: {stages: 4}", "stages lists 2 stages, schedule.stages says 4"),
    ],
)
def test_a_bad_job_file_is_one_line_and_exit_2(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "job.yaml").write_text(content)
    done = train(tmp_path, "--config", str(tmp_path / "job.yaml"))
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ray_without_a_planner_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from train_jobs import training_run
    from train_jobs.job import NoPlannerError

    def nobody(name: str) -> None:
        raise ValueError(f"no actor {name}")

    monkeypatch.setattr(training_run, "actor", nobody)
    with pytest.raises(NoPlannerError, match="no perseus_planner runs on this Ray; start the control plane with"):
        training_run.training_site()
