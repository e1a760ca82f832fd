"""What policies save at low, medium and high load, along a load curve: the thirds of the paper's 51 / 40 / 23.4 %.

    python benchmarks/serving/by_load.py CURVE --lengths conv|code [--from-day 3] [--days 1] [--scale 1]
        [--policies wattray,dynamollm] [--profile NAME]

Five-minute bins of the curve are sorted by the requests that came in them, and cut in three equal parts. Energy is what
GPUs that are held draw in those bins, against single-pool sized for the whole stretch.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from control_plane.baselines.single_pool import SinglePool
from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.settings import Settings
from control_plane.simulation.fleet import Fleet
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.serving_cluster import ClusterTimes, SimulatedCluster
from control_plane.simulation.sizing import Watch, fewest_replicas
from control_plane.simulation.trace import Trace
from control_plane.simulation.traces import WEEK_2024, load_curve_trace
from control_plane.simulation.what_if import hosted_policy

BIN_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curve", type=Path)
    parser.add_argument("--lengths", choices=sorted(WEEK_2024), required=True)
    parser.add_argument("--from-day", type=float, default=3.0)
    parser.add_argument("--days", type=float, default=1.0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--policies", default="wattray,dynamollm")
    parser.add_argument("--profile", default=DEFAULT_PROFILE)
    asked = parser.parse_args()
    profile, settings = load_profile(asked.profile), Settings()
    slo, tp = settings.slo.slo(), max(profile.tps)
    tables = {tp: ShapeTables.of(profile, tp) for tp in profile.tps}
    times = ClusterTimes.for_startup(settings.sharding.startup_s)
    with asked.curve.open(encoding="utf-8") as lines:
        week = load_curve_trace(lines, WEEK_2024[asked.lengths], asked.scale)
    trace = week.between(asked.from_day * 86400, (asked.from_day + asked.days) * 86400)
    del week

    def play(part: Trace, fleet: Fleet, gpus: int | None, watch: Watch | None = None) -> Simulated:
        cluster = SimulatedCluster(
            *(profile, gpus, fleet), sample_s=BIN_S, idle_gpus=0, times=times, tables=tables, slo=slo
        )
        return cluster.run(part, part.duration_s + 60.0, watch)

    sized = fewest_replicas(
        trace, tables[tp], slo, lambda part, replicas, watch: play(part, SinglePool(replicas, tp), None, watch)
    )
    base_j, replicas = _by_bin(sized.outcome), sized.replicas
    arrived = np.bincount((trace.arrival_ps / PS_PER_S // BIN_S).astype(np.int64), minlength=len(base_j))[: len(base_j)]
    thirds = np.array_split(np.argsort(arrived, kind="stable"), 3)
    rates = " / ".join(f"{arrived[third].mean() / BIN_S:.1f}" for third in thirds)
    print(
        f"{len(trace):,} requests; single-pool {replicas} × TP{tp}, {base_j.sum() / 3.6e6:.1f} kWh; {rates} requests/s"
    )
    print("| policy | saved at low / medium / high load | in all | SLO | lost | CPU s |")
    print("|---|---|---|---|---|---|")
    for name in asked.policies.split(","):
        began = time.process_time()
        gpus = max(64, 4 * replicas * tp)
        outcome = play(trace, hosted_policy(name, trace, settings, profile, gpus, 0.0), gpus)
        spent_j = _by_bin(outcome)[: len(base_j)]
        saved = " / ".join(f"{1 - spent_j[third].sum() / base_j[third].sum():.1%}" for third in thirds)
        in_all = 1 - spent_j.sum() / base_j.sum()
        print(
            f"| {name} | {saved} | {in_all:.1%} | {outcome.slo_attainment(slo):.2%} | {outcome.lost} | "
            f"{time.process_time() - began:.0f} |",
            flush=True,
        )


def _by_bin(outcome: Simulated) -> NDArray[np.float64]:
    """Energy in joules by bin: samples are taken at the ends of bins."""
    return np.diff(np.array([sample.energy_j for sample in outcome.samples]))


if __name__ == "__main__":
    main()
