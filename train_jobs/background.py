"""A training job in a process of its own, beside whatever else its starter does."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from train_jobs.job import Job
from train_jobs.training_result import TrainingResult

TOLD_BYTES = 1500
"""Of the end of a log that may be long."""


class TrainingFailedError(RuntimeError):
    """The job ended without a result; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class TrainingProcess:
    """A job that runs. ``folder`` holds its file, its log and, at the end, its run."""

    process: "subprocess.Popen[bytes]"
    folder: Path

    def result(self, timeout_s: float) -> TrainingResult:
        """Wait for the end. Raises TrainingFailedError, also where it takes longer than ``timeout_s``."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise TrainingFailedError(
                f"the training job did not end within {timeout_s:.0f} s:\n{self._told()}"
            ) from None
        if code != 0:
            raise TrainingFailedError(f"the training job ended with exit code {code}:\n{self._told()}")
        try:
            return TrainingResult.from_json((self.folder / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise TrainingFailedError(
                f"the training job left no run that can be read: {error}\n{self._told()}"
            ) from None

    def stop(self, patience_s: float = 10.0) -> None:
        """End it if it runs: asked first, then made to."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _told(self) -> str:
        with (self.folder / "training.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TOLD_BYTES))
            return log.read().decode(errors="replace")


def start_training(job: Job, address: str, folder: Path) -> TrainingProcess:
    """Start ``job`` on the Ray at ``address``, in the background."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(job.model_dump_json())
    command = [sys.executable, "-m", "train_jobs", "--config", str(folder / "job.yaml"), "--address", address]
    with (folder / "training.log").open("wb") as output:
        process = subprocess.Popen(
            [*command, "--run", str(folder / "run.json")],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(os.environ),
        )
    return TrainingProcess(process, folder)
