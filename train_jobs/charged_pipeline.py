"""torch's pipeline stage with its computations charged to a GPU, in the pipeline's true order.

Beside every activation and gradient travels the moment its computation ended: a computation begins when its own stage
is free and what it waits for has been made.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage

from control_plane.training.schedules import BACKWARD, FORWARD, Instruction
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.job import Job
from train_jobs.session import TrainingSession


class Timeline:
    """When this rank's computations begin and end; ends are told to the stages that wait for them."""

    def __init__(self, job: Job, session: TrainingSession, gpu: ChargedGpu, group: dist.ProcessGroup) -> None:
        self._costs, self._faults, self._session, self._gpu, self._group = job.costs, job.faults, session, gpu, group
        self._stage, self._last_stage = session.order.rank, job.schedule.stages - 1
        self._sent: list[tuple[Any, torch.Tensor]] = []
        self._iteration = 0
        self.free_ns = 0

    def start(self, iteration: int, at_ns: int) -> None:
        """A new iteration."""
        for sending, _ in self._sent:
            sending.wait()
        self._sent.clear()
        self._iteration, self.free_ns = iteration, at_ns

    def run(self, instruction: str, microbatch: int) -> None:
        """Charge one computation, once what it waits for is known to have ended."""
        from_stage, to_stage = (-1, 1) if instruction == FORWARD else (1, -1)
        at_ns = max(self.free_ns, self._ended(self._stage + from_stage, instruction, microbatch))
        step = Instruction(instruction, microbatch)
        self._session.begin(step, self._gpu.reading(at_ns))
        work = self._faults.slowed(self._costs.work(self._stage, instruction), self._stage, self._iteration)
        ended = self._gpu.compute(work, at_ns)
        self._session.end(step, ended)
        self.free_ns = ended.at_ns
        self._tell(self._stage + to_stage, instruction, microbatch, ended.at_ns)

    def _ended(self, stage: int, instruction: str, microbatch: int) -> int:
        if not 0 <= stage <= self._last_stage:
            return 0
        moment = torch.zeros(1, dtype=torch.int64)
        dist.recv(moment, stage, group=self._group, tag=_tag(instruction, microbatch))
        return int(moment.item())

    def _tell(self, stage: int, instruction: str, microbatch: int, at_ns: int) -> None:
        if 0 <= stage <= self._last_stage:
            moment = torch.tensor([at_ns], dtype=torch.int64)
            sending = dist.isend(moment, stage, group=self._group, tag=_tag(instruction, microbatch))
            self._sent.append((sending, moment))


def _tag(instruction: str, microbatch: int) -> int:
    return 2 * microbatch + (instruction == BACKWARD)


class ChargedStage(PipelineStage):
    """A PipelineStage whose forwards and backwards end when their GPU has done them."""

    def __init__(self, *args: Any, timeline: Timeline, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeline = timeline

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        self._timeline.run(FORWARD, fwd_chunk_id)
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        output = super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        self._timeline.run(BACKWARD, bwd_chunk_id)
        return output
