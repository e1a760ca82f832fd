"""The exact allocation beside HiGHS on the whole problem, from 32 to 100,000 GPUs and up to 98 % full.

    python benchmarks/allocation/against_highs.py [--profile NAME] [--gpus 32,96,...] [--highs-limit-s 20] [--json FILE]

The load is the Azure 2023 conversation mix, nine types at typical lengths, at a share of the largest load that the GPUs
carry. Prints power, both times (ours with and without the power curves), and how far ours lies above HiGHS's plan and
above HiGHS's proven bound. HiGHS is given 0.01 % as its gap; where its time ends first its best plan is compared.
"""

import argparse
import json
import time
from pathlib import Path

from control_plane.domain import InputClass, RequestType
from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.serving.allocation_curves import PoolDemand, problem_of
from control_plane.serving.allocation_milp import all_pieces, milp_plan
from control_plane.serving.allocation_solver import allocate
from control_plane.serving.controller import TYPICAL_INPUT
from control_plane.serving.length_predictor import PRIOR_SHARES, PRIOR_TOKENS


def demands(rps: float) -> list[PoolDemand]:
    kinds = [RequestType.parse(name) for name in PRIOR_SHARES]
    total = sum(PRIOR_SHARES.values())
    return [
        PoolDemand(kind, rps * PRIOR_SHARES[str(kind)] / total, TYPICAL_INPUT[InputClass(kind.input)],
                   PRIOR_TOKENS[kind.output])
        for kind in kinds
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=DEFAULT_PROFILE)
    parser.add_argument("--gpus", default="32,96,256,1024,8192,100000")
    parser.add_argument("--shares", default="0.5,0.9,0.96,0.98")
    parser.add_argument("--highs-limit-s", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    profile = load_profile(options.profile)
    allocate(problem_of(demands(1.0), profile, 8))
    results = []
    for gpus in map(int, options.gpus.split(",")):
        most = _most_rps(profile, gpus)
        for share in map(float, options.shares.split(",")):
            start_s = time.perf_counter()
            problem = problem_of(demands(share * most), profile, gpus)
            curves_s = time.perf_counter() - start_s
            ours = allocate(problem)
            solve_s = time.perf_counter() - start_s - curves_s
            start_s = time.perf_counter()
            peer = milp_plan(problem, all_pieces(problem), 1e-4, options.highs_limit_s)
            highs_s = time.perf_counter() - start_s
            line = {
                "gpus": gpus, "share": share, "power_w": ours.power_w, "method": ours.method, "curves_s": curves_s,
                "solve_s": solve_s, "highs_s": highs_s, "feasible": ours.feasible,
                "above_highs": None if peer is None else ours.power_w / peer.watts - 1,
                "above_bound": None if peer is None else ours.power_w / peer.bound - 1,
            }  # fmt: skip
            results.append(line)
            plan = "no plan" if peer is None else f"{line['above_highs']:+.3%} (bound {line['above_bound']:+.3%})"
            print(
                f"{gpus:7,} GPUs {share:4.0%} full: {ours.power_w / 1000:10,.2f} kW {ours.method:9} curves "
                f"{curves_s:.2f} s, solve {solve_s:.2f} s, HiGHS {highs_s:6.2f} s; above HiGHS {plan}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def _most_rps(profile, gpus: int) -> float:  # type: ignore[no-untyped-def]
    """The largest load of this mix that the GPUs carry, by halving."""
    low, high = 0.0, 2.0 * gpus
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if allocate(problem_of(demands(middle), profile, gpus)).feasible else (low, middle)
    return low


if __name__ == "__main__":
    main()
