"""Serving policies on the Azure 2023 traces, side by side with the sized static pool, in virtual time.

    python benchmarks/serving/policies.py TRACES [--profile NAME] [--cases conversation,code-x8,...] [--json FILE]

``TRACES`` is a folder with azure2023_conv.csv and azure2023_code.csv. Of every case it prints the energy that each
policy saves against the fewest TP8 replicas at full clock that hold the SLO for 99 % of the very trace, with GPUs that
nobody holds released and charged (idle power up to the baseline's fleet), the share of requests that meet the SLO, the
P99 and P99.9 of the TTFT, and requests that were lost. Simulated; starts take 7 minutes, 33 s on a node that has the
weights; the first ten minutes are known beforehand.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from control_plane.baselines.single_pool import SinglePool
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.settings import Settings
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.serving_cluster import ClusterTimes, SimulatedCluster
from control_plane.simulation.sizing import Watch, fewest_replicas
from control_plane.simulation.trace import Trace, scaled
from control_plane.simulation.traces import azure_trace
from control_plane.simulation.what_if import hosted_policy

SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """A trace, so many times as many requests, for so long."""

    trace: str
    factor: float = 1.0
    seed: int = 0
    first_s: float | None = None
    gpus: int | None = None


CASES = {
    "conversation": Case("conv"),
    "code": Case("code"),
    "conversation-x8": Case("conv", 8),
    "conversation-x8-1": Case("conv", 8, 1),
    "conversation-x8-2": Case("conv", 8, 2),
    "code-x8": Case("code", 8),
    "code-x8-1": Case("code", 8, 1),
    "code-x8-2": Case("code", 8, 2),
    "code-x4": Case("code", 4),
    "code-x4-1": Case("code", 4, 1),
    "code-x4-2": Case("code", 4, 2),
    "code-x4-3": Case("code", 4, 3),
    "conversation-x40": Case("conv", 40, 0, 600.0),
    "code-x40": Case("code", 40, 0, 600.0),
}


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    policy: str
    baseline: str
    baseline_kwh: float
    kwh: float
    saved_ratio: float
    saved_ratio_charged: float
    slo_attainment: float
    lost: int
    ttft_p99_s: float
    ttft_p999_s: float
    gpu_hours: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--profile", default=DEFAULT_PROFILE)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--policies", default="wattray,combined")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    profile, rows = load_profile(asked.profile), []
    print("| case | single-pool, kWh | policy | saved, released / charged | SLO | TTFT P99 / P99.9, s | lost | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in asked.cases.split(","):
        trace = _trace(asked.traces, CASES[name])
        for row in _rows(name, trace, profile, asked.policies.split(","), CASES[name].gpus):
            rows.append(row)
            print(
                f"| {row.case} | {row.baseline}, {row.baseline_kwh:.2f} | {row.policy} | {row.saved_ratio:.1%} / "
                f"{row.saved_ratio_charged:.1%} | {row.slo_attainment:.2%} | {row.ttft_p99_s:.2f} / "
                f"{row.ttft_p999_s:.2f} | {row.lost} | {row.cpu_s:.0f} |",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _trace(folder: Path, case: Case) -> Trace:
    with (folder / f"azure2023_{case.trace}.csv").open(encoding="utf-8") as lines:
        trace = azure_trace(lines)
    if case.factor != 1:
        trace = scaled(trace, case.factor, case.seed)
    return trace if case.first_s is None else trace.between(0.0, case.first_s)


def _rows(name: str, trace: Trace, profile: MachineProfile, policies: Sequence[str], gpus: int | None) -> list[Row]:
    settings, slo = Settings(), Settings().slo.slo()
    tp, end_s = max(profile.tps), trace.duration_s + SETTLE_S
    tables = {tp: ShapeTables.of(profile, tp) for tp in profile.tps}

    def static(part: Trace, replicas: int, watch: Watch) -> Simulated:
        fleet = SinglePool(replicas, tp)
        return SimulatedCluster(profile, None, fleet, idle_gpus=0, tables=tables).run(part, part.duration_s + 60, watch)

    sized = fewest_replicas(trace, tables[tp], slo, static)
    base_gpus = sized.replicas * tp
    rows = []
    for policy in policies:
        began = time.process_time()
        room = gpus or max(64, 4 * base_gpus)
        fleet = hosted_policy(policy, trace, settings, profile, room, 0.0)
        times = ClusterTimes.for_startup(settings.sharding.startup_s)
        cluster = SimulatedCluster(
            profile,
            room,
            fleet,
            sample_s=max(1.0, end_s / 3000),
            idle_gpus=base_gpus,
            times=times,
            tables=tables,
            slo=slo,
        )
        outcome = cluster.run(trace, end_s)
        arrived = np.asarray(outcome.columns.arrival_ps)
        ttft_s = (np.frombuffer(outcome.columns.first_token_ps, np.int64) - arrived) / PS_PER_S
        baseline_j, held_j = sized.outcome.energy_j, outcome.energy_j - outcome.idle_gpu_energy_j
        p99_s, p999_s = np.quantile(ttft_s, (0.99, 0.999))
        rows.append(
            Row(
                name,
                policy,
                f"{sized.replicas} × TP{tp}",
                baseline_j / 3.6e6,
                held_j / 3.6e6,
                1 - held_j / baseline_j,
                1 - outcome.energy_j / baseline_j,
                outcome.slo_attainment(slo),
                outcome.lost,
                float(p99_s),
                float(p999_s),
                outcome.gpu_hours,
                time.process_time() - began,
            )
        )
    return rows


if __name__ == "__main__":
    main()
