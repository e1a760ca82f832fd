"""torchtitan: a model's ``pipelining_fn`` makes the schedule that the trainer steps (0.3)."""

from collections.abc import Callable
from typing import Any

from train_jobs.attach import attach_schedule


def energy_aware(pipelining_fn: Callable[..., Any], job: str, **options: Any) -> Callable[..., Any]:
    """Instead of a ModelSpec's ``pipelining_fn``: makes the same schedule, each ``step`` of which is an iteration under
    an energy plan; with gradient accumulation the trainer steps several times for one update. What is attached is the
    schedule's ``energy``, closed when the process ends. Options as of ``wattray.train.attach``."""

    def pipelining(*args: Any, **kwargs: Any) -> Any:
        made = pipelining_fn(*args, **kwargs)
        schedule = made[0]
        energy, step = attach_schedule(schedule, job, **options), schedule.step

        def stepped(*of: Any, **named: Any) -> Any:
            with energy.iteration():
                return step(*of, **named)

        schedule.step, schedule.energy = stepped, energy
        return made

    return pipelining
