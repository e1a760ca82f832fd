"""Puts a torch pipeline under an energy plan: finds its stages, its GPU and its planner, and installs the hooks."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from actors.training_messages import owner_of
from control_plane.hardware.stage_model import StageWork
from control_plane.training.job_record import JOB_NAME, PERSEUS, Policy
from control_plane.training.schedules import Instruction
from train_jobs.attached import AttachedTraining, NeverLease, RankParts
from train_jobs.board import board_of
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.charged_pipeline import Timeline
from train_jobs.claims import new_run
from train_jobs.collectives import everybody, gathered, latest
from train_jobs.correspondence import Correspondence
from train_jobs.lead import JobShape
from train_jobs.meter import Meter, Reading
from train_jobs.order import SessionError
from train_jobs.planes import Plane, RankGpu, find_plane
from train_jobs.scheduled_clock import ClockControl
from train_jobs.simulated_costs import LayerCost, ParameterCosts
from train_jobs.stage_hooks import Watcher, watch
from train_jobs.threaded_clock import ThreadedClock

log = logging.getLogger(__name__)

Work = Callable[[int, Instruction], StageWork]
"""(stage, computation) → what a simulated GPU is charged for it."""


@dataclass(frozen=True, slots=True)
class RankOfPipeline:
    """What is to be known of a rank of somebody's pipeline: the global ranks of its stages in order, how many model
    chunks it runs, how many parameters it holds, and how to listen to its computations."""

    ranks: tuple[int, ...]
    chunks: int
    parameters: int
    schedule: str
    listen: Callable[[Watcher], Callable[[], None]]
    """Returns what ends that."""
    wrong: str = ""
    """Why it cannot be planned for, on this rank."""


def attach_schedule(schedule: Any, job: str, **options: Any) -> AttachedTraining:
    """See ``wattray.train.attach``. Collective: every rank of the default process group calls it. Options as of
    ``attach_rank``."""
    _check_name(job)
    stages = stages_of(schedule)
    ranks = tuple(dist.get_process_group_ranks(stages[0].group or dist.group.WORLD))

    def listen(watcher: Watcher) -> Callable[[], None]:
        stops = [watch(one, chunk, watcher) for chunk, one in enumerate(stages)]

        def stop_all() -> None:
            for stop in stops:
                stop()

        return stop_all

    parameters = sum(p.numel() for one in stages for p in one.submod.parameters())
    wrong = _why_not(stages, ranks, ranks.index(dist.get_rank()))
    pipeline = RankOfPipeline(ranks, len(stages), parameters, type(schedule).__name__, listen, wrong)
    return attach_rank(pipeline, job, **options)


def attach_rank(
    pipeline: RankOfPipeline,
    job: str,
    *,
    policy: Policy = PERSEUS,
    strict: bool = False,
    switch_time_s: float | None = None,
    work: Work | None = None,
    plane: Plane | None = None,
) -> AttachedTraining:
    """Collective, as ``attach_schedule``. ``work`` says what simulated GPUs are charged, ``plane`` where planner and
    GPUs are. Raises SessionError where a rank has no place in a plan, JobError where there are too few GPUs,
    LeaseRefusedError where they are another's or the job runs already."""
    _check_name(job)
    me = dist.get_rank()
    members: list[tuple[tuple[int, ...], int, str]] = gathered((pipeline.ranks, pipeline.parameters, pipeline.wrong))
    for told in (reason for _, _, reason in members if reason):
        raise SessionError(told)
    pipelines = tuple(sorted({of for of, _, _ in members}))
    found = plane or find_plane()
    owner = owner_of(job, gathered(new_run())[0])
    if found.has_real_gpus:
        from train_jobs.cuda_rank import device_uuid

        uuid = device_uuid()
    else:
        uuid = _given_gpu(found, owner, len(members), me)
    gpu = found.open(owner, uuid)
    shape = JobShape(job, me, pipelines, 0.0, pipeline.schedule, policy)
    if gpu.charged is None:
        from train_jobs.cuda_rank import attach_cuda

        return attach_cuda(pipeline, shape, gpu, found, strict, switch_time_s)
    mean = sum(count for _, count, _ in members) / len(members)
    shares = {rank: count / mean for rank, (_, count, _) in enumerate(members)}
    costs = ParameterCosts(LayerCost(), shares, pipeline.chunks)
    charge = work or (lambda _, step: costs.work(me, step.name))
    return _attach_charged(pipeline, shape, gpu, gpu.charged, found, strict, switch_time_s, charge)


def _check_name(job: str) -> None:
    if not re.fullmatch(JOB_NAME, job):
        raise SessionError(f"job {job!r}: a name has lower-case letters, digits, '.', '_' and '-', such as my-job")


def _attach_charged(
    pipeline: RankOfPipeline,
    shape: JobShape,
    gpu: RankGpu,
    charged: ChargedGpu,
    plane: Plane,
    strict: bool,
    switch_time_s: float | None,
    work: Work,
) -> AttachedTraining:
    spec = charged.spec
    control: ClockControl = ThreadedClock(charged, spec.max_freq_mhz) if gpu.slow_to_set else charged
    lease = gpu.lease or NeverLease()
    acts = everybody(lease.may_lower())
    settles_s = spec.settle_ns * 1e-9
    shape = replace(shape, switch_time_s=settles_s if switch_time_s is None else switch_time_s)
    parts = RankParts(
        shape.rank, shape.stage, pipeline.chunks, Meter(charged.look), control, lease, spec.freqs_mhz, acts
    )
    correspondence = Correspondence(shape, board_of(shape.job), plane.planner)
    attached = AttachedTraining(parts, correspondence, strict)
    members = shape.pipelines[shape.pipeline]
    moments = dist.new_group(list(members), backend="gloo", use_local_synchronization=True)
    meeting = dist.new_group(backend="gloo")
    timeline = Timeline(
        attached, charged, lambda step: work(shape.stage, step), members, shape.stage, moments, pipeline.chunks
    )
    attached.conductor = ChargedConductor(timeline, charged, meeting)
    return listening(attached, pipeline, [gpu.release, *_closers(control), correspondence.close])


def listening(
    attached: AttachedTraining, pipeline: RankOfPipeline, closers: Sequence[Callable[[], Any]]
) -> AttachedTraining:
    """From now on it hears the computations. ``closers`` are called last of all, from the end."""
    for act in closers:
        attached.when_closed(act)
    attached.when_closed(pipeline.listen(attached))
    return attached


def _closers(control: ClockControl) -> list[Callable[[], Any]]:
    return [control.close, lambda: control.flush(2.0)] if isinstance(control, ThreadedClock) else []


class ChargedConductor:
    """Simulated GPUs: an iteration ends for all when the last has ended it, in GPU time; what this machine then takes
    until the next one is nobody's."""

    def __init__(self, timeline: Timeline, gpu: ChargedGpu, group: Any) -> None:
        self._timeline, self._gpu, self._group = timeline, gpu, group
        self.begins, self.ended = timeline.begins, timeline.ended

    def start(self) -> tuple[Reading, Reading]:
        end_ns = latest(self._timeline.free_ns, self._group)
        ended = self._gpu.reading(end_ns)
        start_ns = latest(max(end_ns, self._gpu.now_ns()), self._group)
        self._gpu.sleep_until(start_ns)
        self._timeline.start(start_ns)
        return ended, self._gpu.reading(start_ns)


def stages_of(schedule: Any) -> list[Any]:
    """This rank's stages of a ``torch.distributed.pipelining`` schedule, in the pipeline's order. Raises SessionError
    for anything else."""
    found = getattr(schedule, "_stages", None) or [getattr(schedule, "_stage", None)]
    if any(not hasattr(one, "forward_one_chunk") for one in found):
        raise SessionError(
            f"{type(schedule).__name__} is no schedule of torch.distributed.pipelining: it has no stages to listen to"
        )
    return sorted(found, key=lambda one: one.stage_index)


def _why_not(stages: Sequence[Any], ranks: Sequence[int], rank: int) -> str:
    """What is wrong with how stages are spread over ranks; "" where nothing is."""
    size, total = len(ranks), stages[0].num_stages
    if total != size * len(stages):
        return f"the pipeline has {total} stages, its {size} ranks with {len(stages)} each run {size * len(stages)}"
    for chunk, one in enumerate(stages):
        if one.stage_index != chunk * size + rank:
            return (
                f"rank {ranks[rank]} runs stage {one.stage_index} as its chunk {chunk}, expected stage "
                f"{chunk * size + rank}: V-shaped placements are not planned for, use stage = chunk*ranks + rank"
            )
    return ""


def _given_gpu(plane: Plane, owner: str, ranks: int, me: int) -> str:
    """Of this rank; one rank asks for all, and all raise where it cannot be."""
    told: tuple[str, ...] | ValueError = ()
    if me == 0:
        try:
            told = plane.claim(owner, ranks)
        except ValueError as error:
            told = error
    given = gathered(told)[0]
    if isinstance(given, ValueError):
        raise given
    return given[me]
