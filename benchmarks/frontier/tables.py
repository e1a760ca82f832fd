"""The published tables beside ours, as Markdown: 175B emulation, stragglers, baselines, whole job, measured plans.

python -m benchmarks.frontier.tables
"""

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.frontier.measured import BLOOM_A100, DATA, GPT3_A40, GPT3_A100, Measured
from control_plane.baselines.training import BASELINES, AllMaxClocks
from control_plane.simulation.training_pipeline import savings_with_straggler, simulate_job
from control_plane.training.dag import Dag
from control_plane.training.frontier import walk_frontier
from control_plane.training.planner import all_max, run_choices
from control_plane.training.rounding import PlanLibrary, prepare, rounding_problem

PIPELINES = {12: 128, 24: 64, 48: 32, 96: 16}
PUBLISHED = {
    GPT3_A100: {12: 15.2, 24: 14.2, 48: 13.6, 96: 13.3},
    GPT3_A40: {12: 11.8, 24: 10.2, 48: 9.3, 96: 8.9},
    BLOOM_A100: {12: 10.5, 24: 7.1, 48: 5.2, 96: 4.3},
}
PUBLISHED_STRAGGLER = {GPT3_A100: (28.1, 27.0), BLOOM_A100: (31.9, 29.9), GPT3_A40: (24.7, 23.6)}
DEGREES = (1.05, 1.1, 1.2, 1.3, 1.4, 1.5)
ENVPIPE_NAMES = {
    GPT3_A100: ("gpt3-175b", "a100_sxm"),
    GPT3_A40: ("gpt3-175b", "a40"),
    BLOOM_A100: ("bloom", "a100_sxm"),
}


def main() -> None:
    libraries = {(m, n): library(m.dag(8, n)) for m in PUBLISHED for n in PIPELINES}
    emulation(libraries)
    stragglers(libraries)
    whole_job(libraries)
    measured_plans()


def library(dag: Dag) -> PlanLibrary:
    return prepare(rounding_problem(dag), walk_frontier(dag))


def saved(dag: Dag, energy_j: float, until_s: float) -> float:
    """Percent of what all-max clocks draw until then."""
    return 100 * (1 - energy_j / all_max(dag).energy_until_j(until_s))


def emulation(libraries: dict[tuple[Measured, int], PlanLibrary]) -> None:
    envpipe_j = _envpipe_of_the_artifact()
    print("| profile | micro-batches | published | ours, in all-max time | ours at T_min (T_min, % of all-max time) "
          "| EnvPipe (artifact) | EnvPipe (ours) | Zeus global | Zeus per stage (slowdown %) |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for (m, n), plans in libraries.items():
        dag, frontier = plans.problem.dag, plans.frontier
        highest = all_max(dag)
        at_all_max = plans.within(highest.time_s)
        at_t_min = plans.within(frontier.t_min_s)
        cells = []
        for policy in BASELINES:
            if isinstance(policy, AllMaxClocks):
                continue
            end_s, effective_j = run_choices(dag, policy.choices(dag, highest.time_s))
            energy_j = effective_j + dag.blocking_power_w * max(end_s, highest.time_s)
            slower = 100 * (end_s / highest.time_s - 1)
            cells.append((100 * (1 - energy_j / highest.energy_j), slower))
        artifact = 100 * (1 - envpipe_j[(*ENVPIPE_NAMES[m], n)] / highest.energy_j)
        print(
            f"| {m.name} | {n} | {PUBLISHED[m][n]:.1f} | {saved(dag, at_all_max.energy_j, highest.time_s):.2f} "
            f"| {100 * (1 - at_t_min.energy_j / highest.energy_j):.2f} "
            f"({100 * frontier.t_min_s / highest.time_s:.2f}) | {artifact:.1f} | {cells[2][0]:.1f} "
            f"| {cells[0][0]:.1f} | {cells[1][0]:.1f} ({cells[1][1]:.1f}) |"
        )


def stragglers(libraries: dict[tuple[Measured, int], PlanLibrary]) -> None:
    print("\n| one waiting pipeline, 96 micro-batches | " + " | ".join(map(str, DEGREES)) + " | published at 1.2 |")
    print("|---|" + "---|" * (len(DEGREES) + 1))
    for m in PUBLISHED:
        plans = libraries[(m, 96)]
        dag, t_min_s = plans.problem.dag, plans.frontier.t_min_s
        fastest = plans.within(t_min_s).choices(dag)
        cells = []
        for degree in DEGREES:
            plan = plans.within(degree * t_min_s).choices(dag)
            split = savings_with_straggler(dag, plans.frontier, fastest, plan, degree * t_min_s)
            total, intrinsic = 100 * split.total_ratio, 100 * split.intrinsic_ratio
            cells.append(f"{total:.1f} ({intrinsic:.1f} + {total - intrinsic:.1f})")
        print(f"| {m.name} | " + " | ".join(cells) + f" | {PUBLISHED_STRAGGLER[m][0]} |")


def whole_job(libraries: dict[tuple[Measured, int], PlanLibrary]) -> None:
    print("\n| 1,024 GPUs, 16 pipelines, one straggler 1.2 | whole job saved % | of it intrinsic | published |")
    print("|---|---|---|---|")
    for m in PUBLISHED:
        plans = libraries[(m, 96)]
        dag, t_min_s = plans.problem.dag, plans.frontier.t_min_s
        fastest = plans.within(t_min_s).choices(dag)
        waiting = plans.within(1.2 * t_min_s).choices(dag)
        job = simulate_job(dag, fastest, waiting, PIPELINES[96], 1.2)
        intrinsic = simulate_job(dag, fastest, fastest, PIPELINES[96], 1.2)
        print(
            f"| {m.name} | {100 * job.saved_ratio:.1f} | {100 * intrinsic.saved_ratio:.1f} "
            f"| {PUBLISHED_STRAGGLER[m][1]} |"
        )


@dataclass(frozen=True, slots=True)
class MeasuredPlan:
    source: str
    gpu: str
    parallelism: str
    model: str
    is_all_max: bool
    time_s: float
    energy_j: float


def measured_plans() -> None:
    """What the artifact's own runs on hardware measured: all-max is the mean of its warm-up plans."""
    print("\n| measured on hardware | saved % (slowdown %) | EnvPipe | " + " | ".join(map(str, DEGREES)) + " |")
    print("|---|---|---|" + "---|" * len(DEGREES))
    by_job: dict[tuple[str, str, str], dict[str, list[MeasuredPlan]]] = defaultdict(lambda: defaultdict(list))
    for plan in _measured():
        by_job[(plan.gpu, plan.parallelism, plan.model)][plan.source].append(plan)
    for (gpu, parallelism, model), plans in sorted(by_job.items()):
        stages = int(parallelism.split("pp")[1].split("+")[0])
        gpus = stages * int(parallelism.split("tp")[1]) * int(parallelism.split("dp")[1].split("+")[0])
        blocking_power_w = gpus * {"A100": 83.64, "A40": 70.38}[gpu]
        base = [p for p in plans["perseus"] if p.is_all_max]
        base_s = sum(p.time_s for p in base) / len(base)
        base_j = sum(p.energy_j for p in base) / len(base)
        planned = [p for p in plans["perseus"] if not p.is_all_max]
        fastest = min(planned, key=lambda p: p.time_s)

        def compared(p: MeasuredPlan, base_s: float = base_s, base_j: float = base_j) -> str:
            return f"{100 * (1 - p.energy_j / base_j):.1f} ({100 * (p.time_s / base_s - 1):.1f})"

        cells = []
        for degree in DEGREES:
            until_s = degree * base_s
            waits_j = [p.energy_j + blocking_power_w * (until_s - p.time_s) for p in planned if p.time_s <= until_s]
            before_j = base_j + blocking_power_w * (until_s - base_s)
            cells.append(f"{100 * (1 - min(waits_j) / before_j):.1f}" if waits_j else "–")
        peers = [p for p in plans["envpipe"] if not p.is_all_max] or plans["envpipe"]
        envpipe = compared(peers[-1]) if peers else "–"
        print(f"| {gpu} {parallelism} {model} | {compared(fastest)} | {envpipe} | " + " | ".join(cells) + " |")


def _measured() -> Iterator[MeasuredPlan]:
    with (DATA / "measured" / "kronos_measured_plans.csv").open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            yield MeasuredPlan(
                row["source"],
                row["gpu"],
                row["parallelism"],
                row["model"],
                row["is_allmax_warmup"] == "True",
                float(row["iter_time_s"]),
                float(row["iter_energy_J"]),
            )


def _envpipe_of_the_artifact() -> dict[tuple[str, str, int], float]:
    with (DATA / "measured" / "envpipe_result.csv").open(encoding="utf-8") as rows:
        return {(r["model"], r["device"], int(r["num_microbatches"])): float(r["energy"]) for r in csv.DictReader(rows)}


if __name__ == "__main__":
    main()
