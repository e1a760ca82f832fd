"""Serving policies on the Azure 2023 traces, side by side with the sized static pool, in virtual time.

    python benchmarks/serving/policies.py TRACES [--profile NAME] [--cases conversation,code-x8,...]
        [--policies wattray,static-best,...] [--together] [--json FILE]

``TRACES`` is a folder with azure2023_conv.csv and azure2023_code.csv. Of every case it prints the energy that each
policy saves against the fewest TP8 replicas at full clock that hold the SLO for 99 % of the very trace, with GPUs that
nobody holds released and charged (idle power up to the baseline's fleet), the share of requests that meet the SLO, the
P99 and P99.9 of the TTFT, and requests that were lost. A saving in brackets is that of a policy which misses the SLO.
Yardsticks (``control_plane/simulation/yardsticks.py``) know the trace. ``--together``: engines hand no KV cache over.
Simulated; starts take 7 minutes, 33 s on a node that has the
weights; the first ten minutes are known beforehand.
"""

import argparse
import json
import sys
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
from control_plane.serving.policy import GpuBudgetError, NoHandOverError
from control_plane.settings import Settings
from control_plane.simulation.fleet import Fleet
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.serving_cluster import ClusterTimes, SimulatedCluster
from control_plane.simulation.sizing import SloUnreachableError, Watch, fewest_replicas
from control_plane.simulation.trace import Trace, scaled
from control_plane.simulation.traces import azure_trace
from control_plane.simulation.what_if import hosted_policy
from control_plane.simulation.yardsticks import YARDSTICKS, Contest

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
    "conversation-one-node": Case("conv", 0.7, gpus=8),
    "code-one-node": Case("code", 0.08, gpus=8),
    "conversation-x40": Case("conv", 40, 0, 600.0),
    "code-x40": Case("code", 40, 0, 600.0),
}


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    policy: str
    fleet: str | None
    """Of a yardstick: what was found."""
    held: bool
    """The SLO, for 99 % of the requests."""
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
    parser.add_argument("--policies", default="wattray,static-best,static-split,clock-only,clairvoyant,combined")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    profile, rows = load_profile(asked.profile), []
    settings = Settings(phases="together" if asked.together else "auto")
    print("| case | single-pool, kWh | policy | saved, released / charged | SLO | TTFT P99 / P99.9, s | lost | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in asked.cases.split(","):
        trace = _trace(asked.traces, CASES[name])
        for row in _rows(name, trace, profile, settings, asked.policies.split(","), CASES[name].gpus):
            rows.append(row)
            saved = f"{row.saved_ratio:.1%} / {row.saved_ratio_charged:.1%}"
            policy = row.policy if row.fleet is None else f"{row.policy}: {row.fleet}"
            print(
                f"| {row.case} | {row.baseline}, {row.baseline_kwh:.2f} | {policy} | "
                f"{saved if row.held else f'({saved})'} | {row.slo_attainment:.2%} | {row.ttft_p99_s:.2f} / "
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


def _rows(
    name: str,
    trace: Trace,
    profile: MachineProfile,
    settings: Settings,
    policies: Sequence[str],
    gpus: int | None,
) -> list[Row]:
    slo = settings.slo.slo()
    tp, end_s = max(profile.tps), trace.duration_s + SETTLE_S
    tables = {tp: ShapeTables.of(profile, tp) for tp in profile.tps}
    times = ClusterTimes.for_startup(settings.sharding.startup_s)

    def play(label: str, part: Trace, fleet: Fleet, room: int | None, watch: Watch | None) -> Simulated:
        del label
        cluster = SimulatedCluster(
            *(profile, room, fleet),
            sample_s=max(1.0, end_s / 3000),
            idle_gpus=base_gpus,
            times=times,
            tables=tables,
            slo=slo,
        )
        return cluster.run(part, part.duration_s + SETTLE_S, watch)

    base_gpus = 0
    sized = fewest_replicas(
        *(trace, tables[tp], slo),
        lambda part, replicas, watch: play("", part, SinglePool(replicas, tp), None, watch),
    )
    base_gpus = sized.replicas * tp
    room = gpus or max(64, 4 * base_gpus)
    contest = Contest(trace, profile, settings, tables, 0.99, room, 0.0, sized.replicas, play)
    rows = []
    for policy in policies:
        began = time.process_time()
        fleet = None
        try:
            if policy in YARDSTICKS:
                found = YARDSTICKS[policy](contest)
                fleet, outcome = found.fleet, found.outcome
            else:
                hosted = hosted_policy(policy, trace, settings, profile, room, 0.0)
                outcome = play(policy, trace, hosted, room, None)
        except (GpuBudgetError, NoHandOverError, SloUnreachableError) as error:
            print(f"{name}, {policy}: {error}", file=sys.stderr)
            continue
        arrived = np.asarray(outcome.columns.arrival_ps)
        ttft_s = (np.frombuffer(outcome.columns.first_token_ps, np.int64) - arrived) / PS_PER_S
        baseline_j, held_j = sized.outcome.energy_j, outcome.energy_j - outcome.idle_gpu_energy_j
        p99_s, p999_s = np.quantile(ttft_s, (0.99, 0.999))
        attained = outcome.slo_attainment(slo)
        rows.append(
            Row(
                name,
                policy,
                fleet,
                attained >= 0.99,
                f"{sized.replicas} × TP{tp}",
                baseline_j / 3.6e6,
                held_j / 3.6e6,
                1 - held_j / baseline_j,
                1 - outcome.energy_j / baseline_j,
                attained,
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
