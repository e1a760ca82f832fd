"""How far real clocks are from the lower bound: 24 random deadlines in the lower 40 % of the frontier, and T_min.

python -m benchmarks.frontier.gaps
"""

import time

import numpy as np

from benchmarks.frontier.measured import PROFILES
from control_plane.training.frontier import walk_frontier
from control_plane.training.planner import run_choices
from control_plane.training.rounding import prepare, rounding_problem

SEEDS = (1, 2, 3)


def main() -> None:
    print("| profile | seed | gap mean % | gap max % | at T_min % | overruns | prepare, CPU s | query, CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for m in PROFILES:
        small = m.dag(8, 3)
        prepare(rounding_problem(small), walk_frontier(small)).within(1e9)
        dag = m.dag(8, 96)
        frontier = walk_frontier(dag)
        started_s = time.process_time()
        library = prepare(rounding_problem(dag), frontier)
        prepare_s = time.process_time() - started_s
        span_s = 0.4 * (frontier.t_star_s - frontier.t_min_s)
        for seed in SEEDS:
            gaps, overruns, slowest_s = [], 0, 0.0
            for part in (0.0, *np.random.default_rng(seed).random(24)):
                deadline_s = frontier.t_min_s + part * span_s
                started_s = time.process_time()
                plan = library.within(deadline_s)
                slowest_s = max(slowest_s, time.process_time() - started_s)
                end_s, _ = run_choices(dag, plan.choices(dag))
                overruns += end_s > deadline_s
                gaps.append(100 * plan.gap_ratio)
            print(
                f"| {m.name} | {seed} | {np.mean(gaps):.3f} | {max(gaps):.3f} | {gaps[0]:.3f} | {overruns} "
                f"| {prepare_s:.2f} | {slowest_s:.3f} |"
            )


if __name__ == "__main__":
    main()
