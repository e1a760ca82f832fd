"""A pipeline's computations charged to simulated GPUs, in the pipeline's true order.

Beside every activation and gradient travels the moment its computation ended: a computation begins when its own stage
is free and what it waits for has been made.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist

from control_plane.hardware.stage_model import StageWork
from control_plane.training.schedules import BACKWARD_WEIGHT, FORWARD, Instruction
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.meter import Reading


class Session(Protocol):
    """What is told of each computation, with the GPU at its two ends."""

    def begin(self, step: Instruction, at: Reading) -> object: ...
    def end(self, step: Instruction, at: Reading) -> object: ...


class Timeline:
    """When this rank's computations begin and end; ends are told to the stages that wait for them. A ``Watcher``.

    ``ranks`` are the pipeline's global ranks, stage by stage, ``stage`` is this one's; chunk c of it is the pipeline's
    part c·stages + stage of ``chunks``·stages. ``group`` is a gloo group that all of them are in
    and that sends nothing else.
    """

    def __init__(
        self,
        session: Session,
        gpu: ChargedGpu,
        work: Callable[[Instruction], StageWork],
        ranks: Sequence[int],
        stage: int,
        group: dist.ProcessGroup,
        chunks: int = 1,
    ) -> None:
        self._session, self._gpu, self._work, self._group = session, gpu, work, group
        self._ranks, self._stage, self._parts = tuple(ranks), stage, chunks * len(ranks)
        self._sent: list[tuple[Any, torch.Tensor]] = []
        self._kept: dict[tuple[int, int, bool], int] = {}
        """Ends that a later chunk of this very rank waits for: (part, micro-batch, forward?)."""
        self.free_ns = 0

    def start(self, at_ns: int) -> None:
        """A new iteration."""
        for sending, _ in self._sent:
            sending.wait()
        self._sent.clear()
        self._kept.clear()
        self.free_ns = at_ns

    def begins(self, step: Instruction) -> None:
        """Nothing is known yet: what it is charged is counted from when it may have begun."""

    def ended(self, step: Instruction) -> None:
        """Charge one computation, once what it waits for is known to have ended."""
        forward, part = step.name == FORWARD, step.chunk * len(self._ranks) + self._stage
        at_ns = self.free_ns
        if step.name != BACKWARD_WEIGHT:
            at_ns = max(at_ns, self._end_of(part, -1 if forward else 1, step.microbatch, forward))
        self._session.begin(step, self._gpu.reading(at_ns))
        done = self._gpu.compute(self._work(step), at_ns)
        self._session.end(step, done)
        self.free_ns = done.at_ns
        if step.name != BACKWARD_WEIGHT:
            self._tell(part, 1 if forward else -1, step.microbatch, forward, done.at_ns)

    def _end_of(self, part: int, away: int, microbatch: int, forward: bool) -> int:
        source = part + away
        if not 0 <= source < self._parts:
            return 0
        rank = self._ranks[source % len(self._ranks)]
        if source % len(self._ranks) == self._stage:
            return self._kept.pop((part, microbatch, forward))
        moment = torch.zeros(1, dtype=torch.int64)
        dist.recv(moment, rank, group=self._group, tag=self._tag(part, microbatch, forward))
        return int(moment.item())

    def _tell(self, part: int, away: int, microbatch: int, forward: bool, at_ns: int) -> None:
        waits = part + away
        if not 0 <= waits < self._parts:
            return
        if waits % len(self._ranks) == self._stage:
            self._kept[waits, microbatch, forward] = at_ns
            return
        moment, tag = torch.tensor([at_ns], dtype=torch.int64), self._tag(waits, microbatch, forward)
        sending = dist.isend(moment, self._ranks[waits % len(self._ranks)], group=self._group, tag=tag)
        self._sent.append((sending, moment))

    def _tag(self, waits: int, microbatch: int, forward: bool) -> int:
        return 2 * (microbatch * self._parts + waits) + forward
