"""What wrong output lengths cost: the same policy told learnt lengths, and with a share of them wrong.

    python benchmarks/serving/mispredictions.py TRACES [--wrong 0.4] [--profile NAME] [--policies wattray,dynamollm]
        [--cases conversation,code,...] [--seeds 3] [--json FILE]

``TRACES`` is a folder with azure2023_conv.csv and azure2023_code.csv. A wrong prediction is of one of the two other
classes, drawn at random, with that class's usual tokens. Printed: energy and share of the requests within the SLO with
the table by input class (the default), with learnt lengths, and with learnt lengths of which a share is wrong (the mean
over seeds, and the worst SLO). Simulated; starts take 7 minutes, 33 s on a node that has the weights; the first ten
minutes are known beforehand.
"""

import argparse
import json
from pathlib import Path
from zlib import crc32

from control_plane.domain import OutputClass
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profiles import load_profile
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.hosted_policy import HostedPolicy
from control_plane.serving.length_predictor import PRIOR_TOKENS
from control_plane.serving.length_quantiles import LengthForecast, LengthPredictor, Requester
from control_plane.serving.policies.registry import make_policy
from control_plane.settings import Settings
from control_plane.simulation.serving_cluster import ClusterTimes, SimulatedCluster
from control_plane.simulation.trace import Trace, scaled
from control_plane.simulation.traces import azure_trace
from control_plane.simulation.what_if import site_for

GPUS = 256
CASES = {
    "conversation": ("conv", 1.0),
    "code": ("code", 1.0),
    "conversation-x8": ("conv", 8.0),
    "code-x8": ("code", 8.0),
}
SETTLE_S = 60.0


class Mispredicting(LengthPredictor):
    """Wrong for a share of the requests, always for the same ones."""

    def __init__(self, wrong: float, seed: int) -> None:
        super().__init__()
        self._wrong, self._seed = wrong, seed

    def predict(
        self, who: Requester, input_tokens: int, max_tokens: int, hint_tokens: int | None = None
    ) -> LengthForecast:
        said = super().predict(who, input_tokens, max_tokens, hint_tokens)
        drawn = crc32(f"{self._seed} {self._count} {input_tokens}".encode())
        if drawn % 10_000 >= self._wrong * 10_000:
            return said
        kind = [other for other in OutputClass if other is not said.kind][drawn // 10_000 % 2]
        tokens = min(PRIOR_TOKENS[kind], float(max_tokens))
        return LengthForecast(tokens, tokens, tokens, kind, said.source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--wrong", type=float, default=0.4)
    parser.add_argument("--profile", default="llama2-70b-h100-current")
    parser.add_argument("--policies", default="wattray,dynamollm")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    profile, rows = load_profile(asked.profile), []
    print(f"| case | policy | table: kWh, SLO | learnt: kWh, SLO | {asked.wrong:.0%} wrong: energy, SLO | lost |")
    print("|---|---|---|---|---|---|")
    for case in asked.cases.split(","):
        name, factor = CASES[case]
        with (asked.traces / f"azure2023_{name}.csv").open(encoding="utf-8") as lines:
            trace = azure_trace(lines)
        trace = trace if factor == 1.0 else scaled(trace, factor, 0)
        for policy in asked.policies.split(","):
            table = _run(policy, trace, profile, None)
            right = _run(policy, trace, profile, LengthPredictor())
            wrong = [_run(policy, trace, profile, Mispredicting(asked.wrong, seed)) for seed in range(asked.seeds)]
            kwh = sum(run[0] for run in wrong) / len(wrong)
            slo, lost = min(run[1] for run in wrong), sum(run[2] for run in (table, right, *wrong))
            rows.append({"case": case, "policy": policy, "table": table, "learnt": right, "wrong": wrong})
            print(
                f"| {case} | {policy} | {table[0]:.2f}, {table[1]:.2%} | {right[0]:.2f}, {right[1]:.2%} | "
                f"{kwh / right[0] - 1:+.1%}, {slo:.2%} | {lost} |",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


def _run(name: str, trace: Trace, profile: MachineProfile, lengths: LengthPredictor | None) -> tuple[float, float, int]:
    """kWh that replicas used, the share of requests within the SLO, and how many were lost."""
    settings = Settings()
    slo = settings.slo.slo()
    site = site_for(trace, settings, profile, GPUS, 0.0)
    hosted = HostedPolicy(make_policy(name, site), settings.forecast, GPUS, site.first_load, slo, lengths)
    times = ClusterTimes.for_startup(settings.sharding.startup_s)
    tables = {tp: ShapeTables.of(profile, tp) for tp in profile.tps}
    cluster = SimulatedCluster(profile, GPUS, hosted, sample_s=10.0, idle_gpus=0, times=times, tables=tables, slo=slo)
    found = cluster.run(trace, trace.duration_s + SETTLE_S, None)
    return (found.energy_j - found.idle_gpu_energy_j) / 3.6e6, found.slo_attainment(slo), found.lost


if __name__ == "__main__":
    main()
