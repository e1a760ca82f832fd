"""A pipeline of transformer layers on this machine's GPUs under wattray's hooks, at whatever clock they run.

    torchrun --nproc-per-node 2 benchmarks/training/on_real_gpu.py -o two.json     # two stages over NCCL
    torchrun --nproc-per-node 1 benchmarks/training/on_real_gpu.py -o one.json     # one stage, forward and backward
    torchrun --nproc-per-node 2 benchmarks/training/on_real_gpu.py --dry-run -o dry.json    # CPU, simulated GPUs

It needs torch, numpy, numba, nvidia-ml-py, pyyaml and pydantic, no Ray, and reads only: no clock, limit or mode is ever
set, which the script checks at its end. Where pydantic is missing and nothing can be fetched, bring it along:
`pip install --target .gpu-packages --python-version 3.12 --only-binary=:all: pydantic` and PYTHONPATH=.gpu-packages.

One JSON: what each kind of computation takes (95 % confidence over iterations, and two halves compared), the cost of
the hooks (blocks with and without them in turn), energy by NVML's counter and by sampled power, and the plan that would
be recommended. Only the present clock is measured: other clocks are modelled (``modelled``), so what the plan saves is
too.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from control_plane.hardware.gpu_model import H100_SXM  # noqa: E402
from control_plane.training.job_spec import JobSpec  # noqa: E402
from control_plane.training.planner import all_max, solve  # noqa: E402
from control_plane.training.profile import Choice, profile_of  # noqa: E402
from control_plane.training.schedules import user_order  # noqa: E402
from control_plane.training.switch_rules import SwitchRules  # noqa: E402
from train_jobs.attach import attach_schedule  # noqa: E402
from train_jobs.attached import AttachedTraining  # noqa: E402
from train_jobs.planes import SIMULATED_GPUS_VARIABLE  # noqa: E402

WARM_UP, BLOCK = 5, 6
COMPUTE_SHARE = 0.75
"""Of a computation's time, what stretches as the clock falls: assumed."""
MODELLED_MHZ = (1980, 1830, 1680, 1530, 1380, 1230, 1080, 930)
SWITCH_S = 0.1
"""Assumed of a clock change."""


class Layer(nn.Module):
    """One transformer layer of Llama-3-8B's shape, without position embedding."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, 7 * hidden, bias=False), nn.Linear(7 * hidden // 2, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))
        gate, up = self.up(self.norm_2(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class Stage(nn.Sequential):
    """The last stage has one layer more, as with a language model's head."""

    def __init__(self, rank: int, ranks: int, options: argparse.Namespace) -> None:
        count = options.layers + (rank == ranks - 1)
        super().__init__(*(Layer(options.hidden, options.heads) for _ in range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("-o", "--out", type=Path, required=True)
    add("--layers", type=int, default=4, help="Layers of a stage (4); the last has one more.")
    add("--hidden", type=int, default=4096)
    add("--heads", type=int, default=32)
    add("--length", type=int, default=2048, help="Tokens of a sequence; a micro-batch is one sequence.")
    add("--microbatches", type=int, default=8)
    add("--iterations", type=int, default=40, help="Profiled ones.")
    add("--pairs", type=int, default=15, help="Blocks with and without hooks, in turn.")
    add("--dry-run", action="store_true", help="Tiny, on the CPU, with simulated GPUs.")
    options = parser.parse_args()
    if options.dry_run:
        options.layers, options.hidden, options.heads, options.length = 1, 32, 2, 8
        options.iterations, options.pairs, options.microbatches = 12, 2, 2
    run = Run(options)
    try:
        report = run.report()
    finally:
        run.attached.close()
    if dist.get_rank() == 0:
        options.out.write_text(json.dumps(report, indent=1))
        print(json.dumps({key: report[key] for key in ("hooks", "plan")}, indent=1))
    dist.destroy_process_group()


class Run:
    """One rank."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.simulated = options, options.dry_run
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if self.simulated:
            dist.init_process_group("gloo")
            self.device = torch.device("cpu")
            _simulate(dist.get_rank(), dist.get_world_size())
        else:
            torch.cuda.set_device(local)
            self.device = torch.device("cuda", local)
            dist.init_process_group("nccl", device_id=self.device)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(self.rank)
        dtype = torch.float32 if self.simulated else torch.bfloat16
        self.module = Stage(self.rank, self.ranks, options).to(self.device, dtype)
        shape = (options.microbatches, options.length, options.hidden)
        self.inputs = torch.randn(*shape, device=self.device, dtype=dtype)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-4)
        self.plain, self.hooked = self._schedule(), self._schedule()
        self.limits = self._limits()
        self.attached: AttachedTraining = attach_schedule(self.hooked, "real-gpu", strict=True)

    def _schedule(self) -> Schedule1F1B:
        stage = PipelineStage(self.module, self.rank, self.ranks, self.device)
        return Schedule1F1B(stage, self.options.microbatches, loss_fn=nn.functional.mse_loss)

    def step(self, schedule: Schedule1F1B) -> None:
        given: dict[str, Any] = {"target": self.inputs} if self.rank == self.ranks - 1 else {}
        schedule.step(*([self.inputs] if self.rank == 0 else []), **given)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def with_hooks(self) -> None:
        with self.attached.iteration():
            self.step(self.hooked)

    def without(self) -> None:
        self.step(self.plain)

    def block_s(self, run: Callable[[], None]) -> float:
        """Seconds an iteration of a block takes, to the end of its work on the GPU."""
        self._settle()
        began_s = time.perf_counter()
        for _ in range(BLOCK):
            run()
        self._settle()
        return (time.perf_counter() - began_s) / BLOCK

    def report(self) -> dict[str, Any]:
        for _ in range(WARM_UP):
            self.without()
        self.with_hooks()
        kinds: dict[str, list[list[float]]] = defaultdict(list)
        watts: dict[str, list[float]] = defaultdict(list)
        counter_j, began_s = self._energy_j(), time.perf_counter()
        sampled_j = self.attached._parts.meter.now().energy_j
        for _ in range(self.options.iterations):
            self.with_hooks()
            by_kind: dict[str, list[Any]] = defaultdict(list)
            for one in self.attached.steps:
                by_kind[one.step.name].append(one)
            for name, steps in by_kind.items():
                kinds[name].append([one.time_s for one in steps])
                watts[name].append(sum(one.energy_j for one in steps) / sum(one.time_s for one in steps))
        self._settle()
        lasted_s = time.perf_counter() - began_s
        energy = {
            "counter_j": None if counter_j is None else (self._energy_j() or 0.0) - counter_j,
            "sampled_j": self.attached._parts.meter.now().energy_j - sampled_j,
            "seconds": lasted_s,
        }
        pairs = [(self.block_s(self.with_hooks), self.block_s(self.without)) for _ in range(self.options.pairs)]
        mine = {
            "rank": self.rank,
            "gpu": "simulated" if self.simulated else torch.cuda.get_device_name(self.device),
            "kinds": {name: summed(found, watts[name]) for name, found in kinds.items()},
            "waiting_w": self.attached.profile.waiting_w if self.attached.profile else None,
            "waiting_in_a_collective_w": self.attached._parts.waiting_w,
            "energy": energy,
            "iteration_s": statistics.median(without for _, without in pairs),
            "hooks_ratio": confident([hooked / without - 1 for hooked, without in pairs]),
            "limits_unchanged": self._limits() == self.limits,
            "program": [(s.name, s.microbatch, s.chunk) for s in self.attached._session.order.program],  # type: ignore[union-attr]
            "summary": self.attached.summary(),
        }
        everyone: list[Any] = [None] * self.ranks
        dist.all_gather_object(everyone, mine)
        if self.rank != 0:
            return {}
        return {
            "torch": torch.__version__,
            "options": {key: str(value) for key, value in vars(self.options).items()},
            "hooks": {f"rank {one['rank']}": one["hooks_ratio"] for one in everyone},
            "plan": recommended(everyone),
            "ranks": everyone,
        }

    def _settle(self) -> None:
        if not self.simulated:
            torch.cuda.synchronize()

    def _nvml(self) -> Any:
        from train_jobs.cuda_rank import device_uuid, nvml_gpu

        return nvml_gpu(device_uuid())

    def _energy_j(self) -> float | None:
        if self.simulated:
            return None
        time.sleep(0.12)  # The counter is brought up to date ten times a second.
        return float(self._nvml().energy_j())

    def _limits(self) -> Any:
        """What nobody may change here."""
        return None if self.simulated else self._nvml().power_limit_w()


def _simulate(rank: int, ranks: int) -> None:
    from actors.gpu.simulated import SimulatedNode

    path = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(path, 0)
    os.environ[SIMULATED_GPUS_VARIABLE] = f"{path[0]}/gpus.bin"
    if rank == 0:
        SimulatedNode.create(Path(path[0]) / "gpus.bin", ranks).close()
    dist.barrier()


def confident(values: list[float]) -> dict[str, float]:
    """Mean and half of its 95 % interval (normal approximation of Student's t above a dozen values)."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    if len(values) < 12:
        half *= 1 + 2.5 / len(values)
    return {"mean": statistics.fmean(values), "half_95": half, "count": len(values)}


def summed(iterations: list[list[float]], watts: list[float]) -> dict[str, Any]:
    """Of one kind: seconds by iteration's median, watts, and how far the two halves of the run are apart."""
    medians = [statistics.median(times_s) for times_s in iterations]
    half = len(medians) // 2
    first, second = statistics.median(medians[:half]), statistics.median(medians[half:])
    return {
        "time_s": confident(medians),
        "median_s": statistics.median(medians),
        "watts": confident(watts),
        "halves_differ_ratio": abs(second / first - 1),
        "computations": sum(len(times_s) for times_s in iterations),
    }


def modelled(time_s: float, watts: float, waiting_w: float) -> list[Choice]:
    """A computation at other clocks, from what it takes at the highest: compute stretches with the clock, the power
    above that of waiting follows the H100 model of control_plane/hardware/gpu_model."""
    choices = []
    for mhz in MODELLED_MHZ:
        longer = COMPUTE_SHARE * MODELLED_MHZ[0] / mhz + 1 - COMPUTE_SHARE
        power_w = waiting_w + max(0.0, watts - waiting_w) * H100_SXM.sm_scale(mhz)
        choices.append(Choice(mhz, time_s * longer, time_s * longer * power_w))
    return choices


def recommended(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The plan that the measured computations lead to; nothing is set."""
    waiting_w = statistics.fmean(one["waiting_w"] or H100_SXM.context_w for one in ranks)
    choices = {
        (one["rank"], name): modelled(found["median_s"], found["watts"]["mean"], waiting_w)
        for one in ranks
        for name, found in one["kinds"].items()
    }
    programs = [[_instruction(*step) for step in one["program"]] for one in ranks]
    spec = JobSpec(profile_of(choices), user_order(programs, "1f1b"), waiting_w)
    told: dict[str, Any] = {"waiting_w": waiting_w, "modelled_clocks": list(MODELLED_MHZ)}
    for name, one in (("any_clock", spec), ("held_clocks", replace(spec, switch=SwitchRules(SWITCH_S)))):
        job = solve(one)
        plan, full = job.with_straggler(1.0), all_max(job.dag)
        slow = job.with_straggler(1.2)
        told[name] = {
            "all_max_time_s": full.time_s,
            "planned_time_s": plan.finish_time_s,
            "modelled_saving_ratio": 1 - plan.energy_j / full.energy_until_j(plan.deadline_s),
            "modelled_saving_ratio_straggler_1.2": 1 - slow.energy_j / full.energy_until_j(slow.deadline_s),
            "clocks_mhz": [sorted({step.freq_mhz for step in rank}, reverse=True) for rank in plan.ranks],
        }
    return told


def _instruction(name: str, microbatch: int, chunk: int) -> Any:
    from control_plane.training.schedules import Instruction

    return Instruction(name, microbatch, chunk)


if __name__ == "__main__":
    main()
