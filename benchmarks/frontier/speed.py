"""Whole frontiers, paired: this planner and lowtime 0.3.0 on the same DAGs, same machine, same run, CPU seconds.

python -m benchmarks.frontier.speed --lowtime-python /path/to/venv/bin/python [--pairs 4x8,16x128]
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.frontier.measured import GPT3_A100
from control_plane.training.dag import Dag
from control_plane.training.frontier import walk_frontier
from control_plane.training.planner import run_choices
from control_plane.training.rounding import prepare, rounding_problem

WALKS = ((8, 12), (8, 96), (8, 128), (16, 128), (16, 256), (32, 256))
PAIRS = "4x8,8x12,8x96,16x128"
SCHEDULES = (("gpipe", 16, 128, 1), ("interleaved-1f1b", 16, 64, 2), ("zero-bubble", 16, 128, 1))


def main(
    lowtime_python: Annotated[Path | None, typer.Option(help="Interpreter of a venv with lowtime 0.3.0.")] = None,
    limit_s: Annotated[float, typer.Option(help="CPU seconds lowtime gets per DAG; the rest is extrapolated.")] = 100.0,
    pairs: Annotated[str, typer.Option(help="Stages x micro-batches to compare at.")] = PAIRS,
    walks: Annotated[bool, typer.Option(help="Time this planner on every schedule first.")] = True,
) -> None:
    if walks:
        _walks()
    if lowtime_python is not None:
        walk_frontier(GPT3_A100.dag(8, 2))
        _pair(lowtime_python, limit_s, [tuple(map(int, size.split("x"))) for size in pairs.split(",")])


def _walks() -> None:
    first = "import time;t=time.process_time();from benchmarks.frontier.measured import GPT3_A100;"
    first += "from control_plane.training.frontier import walk_frontier;i=time.process_time()-t;"
    first += "d=GPT3_A100.dag(8,12);t=time.process_time();walk_frontier(d);print(i,time.process_time()-t)"
    for run in ("first process (may compile)", "next process (kernel cached)"):
        done = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, check=True)
        imports_s, walk_s = map(float, done.stdout.split())
        print(f"{run}: imports {imports_s:.2f} s, first call 8x12 {walk_s:.2f} s")

    walk_frontier(GPT3_A100.dag(8, 2))
    print("| schedule | stages x micro-batches | operations | breakpoints | walk, CPU s (best of 3) | peak MiB |")
    print("|---|---|---|---|---|---|")
    for schedule, stages, microbatches, chunks in [("1f1b", *size, 1) for size in WALKS] + list(SCHEDULES):
        dag = GPT3_A100.dag(stages, microbatches, schedule, chunks)
        times_s = []
        for _ in range(3 if len(dag) < 10_000 else 1):
            started_s = time.process_time()
            frontier = walk_frontier(dag)
            times_s.append(time.process_time() - started_s)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"| {schedule} | {stages}x{microbatches} | {len(dag)} | {frontier.breakpoints} "
            f"| {min(times_s):.3f} | {peak_mib:.0f} |",
            flush=True,
        )


def _pair(lowtime_python: Path, limit_s: float, sizes: list[tuple[int, ...]]) -> None:
    print("\n| 1F1B | ours, CPU s | lowtime, CPU s | ratio | gap to bound ours mean/max % | lowtime mean/max % |")
    print("|---|---|---|---|---|---|")
    for stages, microbatches in sizes:
        dag = GPT3_A100.dag(stages, microbatches)
        times_s = []
        for _ in range(3):
            started_s = time.process_time()
            frontier = walk_frontier(dag)
            times_s.append(time.process_time() - started_s)
        ours_s = min(times_s)
        peer = _lowtime(lowtime_python, dag, limit_s)
        whole = peer["steps"] >= peer["steps_needed"]
        peer_cpu_s, peer_steps = peer["cpu_s"], f"{peer['steps']:,} of {peer['steps_needed']:,}"
        peer_s = peer_cpu_s * max(1.0, peer["steps_needed"] / peer["steps"])
        library = prepare(rounding_problem(dag), frontier)
        ours, theirs, overrun = [], [], 0.0
        for tenth_s, knobs in peer["plans"]:
            claimed_s = 10 * tenth_s
            choices = [dag.computation(op).choices[knob] for op, knob in enumerate(knobs)]
            end_s, effective_j = run_choices(dag, choices)
            if end_s < frontier.t_min_s:
                continue
            overrun = max(overrun, end_s / claimed_s - 1)
            bound = frontier.within(end_s)
            theirs.append((effective_j - bound.effective_j) / bound.energy_j)
            ours.append(library.within(end_s).gap_ratio)
        quality = [
            f"{100 * sum(gaps) / len(gaps):.2f}/{100 * max(gaps):.2f}" if gaps and whole else "–"
            for gaps in (ours, theirs)
        ]
        print(
            f"| {stages}x{microbatches} | {ours_s:.3f} | {'' if whole else '>= '}{peer_s:,.1f}"
            f"{'' if whole else f' (extrapolated: {peer_steps} steps in {peer_cpu_s:.0f} s)'} "
            f"| {peer_s / ours_s:,.0f} | {quality[0]} | {quality[1]}"
            f"{f' (overruns its claim by {overrun:.2%})' if overrun > 0 else ''} |",
            flush=True,
        )


def _lowtime(python: Path, dag: Dag, limit_s: float) -> dict:  # type: ignore[type-arg]
    """The profile at the scale it was published in, one tenth and per GPU: lowtime's fit starts from there."""
    given = {
        "kinds": [
            [[i, choice.time_s / 10, c.effective_j(choice) / 80] for i, choice in enumerate(c.choices)]
            for c in dag.computations
        ],
        "kind": dag.kind.tolist(),
        "edges": dag.edges.tolist(),
        "limit_s": limit_s,
        "keep_every": 50,
    }
    script = Path(__file__).with_name("lowtime_run.py")
    done = subprocess.run([python, script], input=json.dumps(given), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lowtime failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    typer.run(main)
