"""Hears when the computations of a torch pipeline stage begin and end, whatever schedule runs them.

Every schedule of ``torch.distributed.pipelining`` calls ``forward_one_chunk``, ``backward_one_chunk`` and
``backward_weight_one_chunk`` of its stages, the multi-stage ones from their runtime (torch 2.13): these calls are
wrapped on the one stage object. What they are given and what they return is passed through untouched.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

from control_plane.training.schedules import BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, Instruction


class Watcher(Protocol):
    """Is told of every computation, in the training thread."""

    def begins(self, step: Instruction) -> None: ...
    def ended(self, step: Instruction) -> None: ...


def watch(stage: Any, chunk: int, watcher: Watcher) -> Callable[[], None]:
    """From now on ``watcher`` hears of this stage, which is the rank's ``chunk``-th; returns what ends that."""
    named: dict[str, Callable[..., str]] = {
        "forward_one_chunk": lambda **_: FORWARD,
        "backward_one_chunk": lambda full_backward=True, **_: BACKWARD if full_backward else BACKWARD_INPUT,
        "backward_weight_one_chunk": lambda **_: BACKWARD_WEIGHT,
    }
    for method, name in named.items():
        setattr(stage, method, _wrapped(getattr(stage, method), name, chunk, watcher))

    def stop() -> None:
        for method in named:
            stage.__dict__.pop(method, None)

    return stop


def _wrapped(call: Callable[..., Any], name: Callable[..., str], chunk: int, watcher: Watcher) -> Callable[..., Any]:
    known: dict[tuple[str, int], Instruction] = {}

    @functools.wraps(call)
    def watched(microbatch: int, *args: Any, **kwargs: Any) -> Any:
        key = (name(**kwargs), microbatch)
        step = known.get(key)
        if step is None:
            step = known[key] = Instruction(key[0], microbatch, chunk)
        watcher.begins(step)
        result = call(microbatch, *args, **kwargs)
        watcher.ended(step)
        return result

    return watched
