"""A training process that ends well, badly, or without what it should leave behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from run_log_values import iteration

from train_jobs.background import TOLD_BYTES, TrainingFailedError, TrainingProcess
from train_jobs.job import Job
from train_jobs.run_log import RunLog
from train_jobs.training_result import account

RESULT = account(Job(), RunLog(starts=1, iterations=(iteration(0, 1.0, 100.0, 1.0, 0.0),)), None)


def process(folder: Path, code: str) -> TrainingProcess:
    with (folder / "training.log").open("wb") as output:
        return TrainingProcess(subprocess.Popen([sys.executable, "-c", code], stdout=output), folder)


def test_a_job_that_ends_well_gives_its_result(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(RESULT.to_json())
    assert process(tmp_path, "").result(20) == RESULT


def test_a_job_that_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    code = "print('x' * 100_000 + 'why it failed', flush=True); raise SystemExit(3)"
    with pytest.raises(TrainingFailedError, match=r"exit code 3:\nx+why it failed") as caught:
        process(tmp_path, code).result(20)
    assert len(str(caught.value)) < TOLD_BYTES + 100


@pytest.mark.parametrize("left", [None, "", '{"job": {}'])
def test_a_job_that_leaves_no_run_is_told(tmp_path: Path, left: str | None) -> None:
    if left is not None:
        (tmp_path / "run.json").write_text(left)
    with pytest.raises(TrainingFailedError, match="left no run that can be read"):
        process(tmp_path, "").result(20)


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    running = process(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(TrainingFailedError, match="did not end within 0 s"):
        running.result(0.2)
    assert running.process.poll() is not None
    running.stop()
