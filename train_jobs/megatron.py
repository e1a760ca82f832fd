"""Megatron-Core: its schedules tell ``config.timers`` when a forward or backward begins and ends (0.16).

No patch: ``MegatronTimers`` takes the place of the timers and passes everything on to those that were there. The n-th
forward of an iteration is micro-batch n, and so with backwards: true of its schedules without virtual stages.
"""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from control_plane.training.schedules import BACKWARD, FORWARD, Instruction
from train_jobs.attach import RankOfPipeline, attach_rank
from train_jobs.attached import AttachedTraining
from train_jobs.order import SessionError
from train_jobs.stage_hooks import Watcher

KINDS = {"forward-compute": FORWARD, "backward-compute": BACKWARD}
WHOLE = "forward-backward"
"""The timer around an iteration."""


class _Timer:
    """One of Megatron's, or none, and what is told beside it."""

    def __init__(self, inner: Any, started: Callable[[], None], stopped: Callable[[], None]) -> None:
        self._inner, self._started, self._stopped = inner, started, stopped

    def start(self, *args: Any, **kwargs: Any) -> None:
        if self._inner is not None:
            self._inner.start(*args, **kwargs)
        self._started()

    def stop(self, *args: Any, **kwargs: Any) -> None:
        self._stopped()
        if self._inner is not None:
            self._inner.stop(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class MegatronTimers:
    """Called as ``megatron.core.timers.Timers`` is."""

    def __init__(self, watcher: Watcher, inner: Any) -> None:
        self._watcher, self._inner = watcher, inner
        self._counts = dict.fromkeys(KINDS.values(), 0)

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        inner = None if self._inner is None else self._inner(name, *args, **kwargs)
        if name in KINDS:
            kind = KINDS[name]
            return _Timer(inner, lambda: self._begins(kind), lambda: self._ended(kind))
        return _Timer(inner, self._new_iteration if name == WHOLE else _nothing, _nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _new_iteration(self) -> None:
        self._counts = dict.fromkeys(self._counts, 0)

    def _begins(self, kind: str) -> None:
        self._watcher.begins(Instruction(kind, self._counts[kind]))

    def _ended(self, kind: str) -> None:
        self._watcher.ended(Instruction(kind, self._counts[kind]))
        self._counts[kind] += 1


def _nothing() -> None:
    """Of a timer that nobody listens to."""


def attach_megatron(
    config: Any, job: str, *, group: Any = None, parameters: int = 1, **options: Any
) -> AttachedTraining:
    """Put a Megatron-Core pipeline under an energy plan, by its ``ModelParallelConfig``: every rank calls it once, when
    ``parallel_state`` is initialised. ``group`` is the pipeline group (default: parallel_state's). Options as of
    ``wattray.train.attach``. Raises SessionError, also for virtual pipeline stages.
    """
    if group is None:
        from megatron.core import parallel_state

        group = parallel_state.get_pipeline_model_parallel_group()
    virtual = getattr(config, "virtual_pipeline_model_parallel_size", None)
    wrong = "" if virtual in (None, 1) else f"virtual_pipeline_model_parallel_size {virtual}: set it to None"

    def listen(watcher: Watcher) -> Callable[[], None]:
        before = config.timers
        config.timers = MegatronTimers(watcher, before)

        def stop() -> None:
            config.timers = before

        return stop

    if not hasattr(config, "timers"):
        raise SessionError(f"{type(config).__name__} is no ModelParallelConfig of Megatron-Core: it has no timers")
    ranks = tuple(dist.get_process_group_ranks(group))
    return attach_rank(RankOfPipeline(ranks, 1, parameters, "megatron", listen, wrong), job, **options)
