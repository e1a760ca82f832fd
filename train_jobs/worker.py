"""What Ray Train starts in a worker: only there are torch's pipelines loaded, the job's driver does without."""

from typing import Any


def work(config: dict[str, Any]) -> None:
    """See ``train_loop``."""
    from train_jobs.train_loop import train_loop

    train_loop(config)
