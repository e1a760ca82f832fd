"""A rank on a real NVIDIA GPU: computations are timed by CUDA events, energy comes from sampled power.

Nothing waits for the GPU: events are asked whether they are over, at the end of a later iteration if need be.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from control_plane.ports import Gpu
from control_plane.training.schedules import Instruction
from train_jobs.attached import AttachedTraining, NeverLease, RankParts
from train_jobs.board import board_of
from train_jobs.collectives import gathered
from train_jobs.correspondence import Correspondence
from train_jobs.lead import JobShape
from train_jobs.meter import MeasuredStep, Meter, Reading, between
from train_jobs.order import SessionError
from train_jobs.planes import SIMULATED_GPUS_VARIABLE, Plane, RankGpu
from train_jobs.power_sampler import PowerSampler
from train_jobs.scheduled_clock import ClockControl
from train_jobs.threaded_clock import Ready, ThreadedClock

if TYPE_CHECKING:
    from train_jobs.attach import RankOfPipeline

WAIT_S = 1.5
"""Of which the last nine tenths but the first three are looked at: sensors average over up to a second."""
SWITCH_TIME_S = 0.1
"""Of a GPU whose clock changes were not measured: tens of milliseconds on an A100, hundreds on a GH200."""


def device_uuid() -> str:
    """Of the current CUDA device, as NVML calls it. Raises SessionError where torch sees none."""
    if not torch.cuda.is_available():
        raise SessionError(
            f"torch sees no CUDA device; for simulated GPUs name a simulated node's file in {SIMULATED_GPUS_VARIABLE}"
        )
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def nvml_gpu(uuid: str) -> Gpu:
    """Raises SessionError where the driver does not list it."""
    from actors.gpu.nvml_node import NvmlNode

    for gpu in NvmlNode().gpus():
        if gpu.uuid == uuid:
            return gpu
    raise SessionError(f"NVML lists no GPU {uuid}; is it a MIG instance? Energy cannot be told then")


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class FixedClock:
    """Where clocks are only recommended."""

    def __init__(self, full_clock_mhz: int) -> None:
        self._full_clock_mhz = full_clock_mhz

    def set_clock(self, freq_mhz: int, at_ns: int) -> None:
        """Nothing is set."""

    def target_mhz(self) -> int:
        return self._full_clock_mhz


class CudaMeter(Meter):
    """Events instead of readings: ``take`` returns the computations that the GPU has finished by then, in order.
    ``clock_mhz`` says the clock that is asked for, and ``settled_ns`` since when it is in force."""

    def __init__(self, sampler: PowerSampler, clock_mhz: Callable[[], int], settle_s: float) -> None:
        super().__init__(sampler.now)
        self._sampler, self._clock_mhz, self._settle_ns = sampler, clock_mhz, round(settle_s * 1e9)
        self._pending: deque[tuple[Instruction, Any, Any, int, bool]] = deque()
        self._begin: Any = None
        self._last_end: Any = None
        self._clock, self._since_ns = clock_mhz(), 0
        self._zero_ns = 0
        self._zero: Any = None

    def start_iteration(self) -> None:
        """An event whose moment is known on both clocks; short of a synchronisation it is early by the launch."""
        if self._zero is None:
            torch.cuda.synchronize()
            self._zero, self._zero_ns = _event(), time.monotonic_ns()
            self._zero.record()

    def begin(self, at: Reading) -> None:
        del at
        clock = self._clock_mhz()
        if clock != self._clock:
            self._clock, self._since_ns = clock, time.monotonic_ns()
        self._begin = _event()
        self._begin.record()

    def end(self, step: Instruction, at: Reading) -> MeasuredStep:
        if self._begin is None:
            raise ValueError(f"{step} ends and nothing has begun")
        ended = _event()
        ended.record()
        settled = self._clock_mhz() == self._clock and time.monotonic_ns() - self._since_ns > self._settle_ns
        self._pending.append((step, self._begin, ended, self._clock, settled))
        self._begin, self._last_end = None, ended
        return between(step, at, at)

    def take(self) -> tuple[MeasuredStep, ...]:
        done = []
        while self._pending and self._pending[0][2].query():
            step, began, ended, clock, settled = self._pending.popleft()
            begin_ns = self._zero_ns + round(self._zero.elapsed_time(began) * 1e6)
            end_ns = begin_ns + round(began.elapsed_time(ended) * 1e6)
            done.append(MeasuredStep(step, begin_ns, end_ns, 0.0, clock, settled))
        return with_energy(done, self._sampler)

    def mark(self) -> Ready:
        """The GPU has come to here once its last computation is over."""
        last = self._last_end
        return last.query if last is not None else lambda: True


def with_energy(steps: Sequence[MeasuredStep], sampler: PowerSampler) -> tuple[MeasuredStep, ...]:
    """Each kind's mean power over the samples that fall into its computations, multiplied by the time of each."""
    watts: dict[str, list[float]] = defaultdict(list)
    if not steps:
        return ()
    samples = sampler.between(steps[0].begin_ns, steps[-1].end_ns)
    place = 0
    for step in steps:
        while place < len(samples) and samples[place][0] < step.begin_ns:
            place += 1
        while place < len(samples) and samples[place][0] <= step.end_ns:
            watts[step.step.name].append(samples[place][1])
            place += 1
    overall = fmean(w for _, w, _ in samples) if samples else 0.0
    mean_w = {name: fmean(found) for name, found in watts.items()}
    return tuple(step._replace(energy_j=step.time_s * mean_w.get(step.step.name, overall)) for step in steps)


class CudaConductor:
    """Real time."""

    def __init__(self, attached: AttachedTraining, meter: CudaMeter, sampler: PowerSampler) -> None:
        self._attached, self._meter, self._sampler = attached, meter, sampler

    def start(self) -> tuple[Reading, Reading]:
        self._meter.start_iteration()
        now = self._sampler.now()
        return now, now

    def begins(self, step: Instruction) -> None:
        self._attached.begin(step, self._sampler.now())

    def ended(self, step: Instruction) -> None:
        self._attached.end(step, self._sampler.now())


def waiting_power_w(sampler: PowerSampler) -> float | None:
    """Collective: what this GPU draws while it waits in a collective for another rank (alone: with nothing to do), at
    the clock that runs; None where its power cannot be read. Takes three seconds."""
    me, ranks = dist.get_rank(), dist.get_world_size()
    found = []
    for late in sorted({0, ranks - 1}):
        torch.cuda.synchronize()
        everyone = torch.ones(1, device="cuda")
        dist.all_reduce(everyone)
        torch.cuda.synchronize()
        began_ns = time.monotonic_ns()
        if me == late:
            time.sleep(WAIT_S)
        dist.all_reduce(everyone)
        if me != late or ranks == 1:
            time.sleep(max(0.0, WAIT_S - (time.monotonic_ns() - began_ns) * 1e-9 - 0.1))
            waited_w = sampler.mean_w(began_ns + round(0.3 * WAIT_S * 1e9), began_ns + round(0.9 * WAIT_S * 1e9))
            found += [] if waited_w is None else [waited_w]
        torch.cuda.synchronize()
    return fmean(found) if found else None


def attach_cuda(
    pipeline: "RankOfPipeline", shape: JobShape, gpu: RankGpu, plane: Plane, strict: bool, switch_time_s: float | None
) -> AttachedTraining:
    """As ``attach_rank`` for a rank whose GPU is real."""
    from train_jobs.attach import listening

    hardware = nvml_gpu(gpu.uuid)
    supported = tuple(hardware.supported_freqs_mhz()) or (hardware.freq_mhz(),)
    switch_s = SWITCH_TIME_S if switch_time_s is None else switch_time_s
    lease = gpu.lease or NeverLease()
    acts = all(gathered(lease.may_lower() and gpu.control is not None))
    sampler = PowerSampler(hardware)
    waiting_w, limit_w = waiting_power_w(sampler), hardware.power_limit_w()
    held: list[ClockControl] = [FixedClock(supported[-1])]
    meter = CudaMeter(sampler, lambda: held[0].target_mhz(), 2 * switch_s)
    if acts and gpu.control is not None:
        held[0] = ThreadedClock(gpu.control, supported[-1], meter.mark)
    control = held[0]
    shape = replace(shape, switch_time_s=switch_s)
    parts = RankParts(
        shape.rank, shape.stage, pipeline.chunks, meter, control, lease, supported, acts, waiting_w, limit_w
    )
    correspondence = Correspondence(shape, board_of(shape.job), plane.planner)
    attached = AttachedTraining(parts, correspondence, strict)
    attached.conductor = CudaConductor(attached, meter, sampler)
    closers: list[Callable[[], Any]] = [gpu.release, sampler.close]
    if isinstance(control, ThreadedClock):
        closers += [control.close, lambda: control.flush(2.0)]
    return listening(attached, pipeline, [*closers, correspondence.close])
