"""Results of a simulation as JSON and as a table, and the profile a command names."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profiles import load_profile
from control_plane.simulation.comparison import Answer
from control_plane.simulation.policies import SINGLE_POOL
from control_plane.simulation.trace import Trace


def as_json(answer: Answer, names: tuple[str, ...], requests: Trace) -> dict[str, Any]:
    """The results as written by --json; energies in joules, times in seconds."""
    effort = answer.effort
    return {
        "policies": {
            name: {**asdict(answer.scores[name]), "energy_saved_ratio": answer.saved_ratio(name)}
            for name in shown(answer, names)
        },
        "simulator": {
            "requests": len(requests),
            "cpu_s": effort.cpu_s,
            "policy_cpu_s": effort.policy_cpu_s,
            "sizing_cpu_s": effort.sizing_cpu_s,
            "requests_per_cpu_s": len(requests) / effort.cpu_s if effort.cpu_s > 0 else None,
        },
        "bound_energy_j": answer.bound.energy_j,
        "single_pool": {"replicas": answer.baseline_replicas, "sizing_runs": answer.sizing_runs},
        "gpus": answer.gpus,
        "idle_gpus_billed": answer.idle_gpus,
    }


def shown(answer: Answer, names: tuple[str, ...]) -> list[str]:
    return [*dict.fromkeys((*names, *answer.scores))]


def named_profile(name: str) -> MachineProfile:
    """An embedded profile by name, or a user's own from a file; raises ProfileError with the known names."""
    path = Path(name)
    return load_profile(path.read_text(), source=name) if path.is_file() else load_profile(name)


def result_table(answer: Answer, names: tuple[str, ...], requests: Trace) -> Table:
    hours = requests.duration_s / 3600
    table = Table(title=f"{len(requests):,} requests in {hours:.2f} h")
    table.add_column("policy")
    for column in (
        "energy kWh",
        "saved",
        "SLO held",
        "lost",
        "TTFT p50 / p99",
        "TBT p99",
        "GPU h",
        "replicas",
        "changes",
    ):
        table.add_column(column, justify="right")
    for name in shown(answer, names):
        line = answer.scores[name]
        table.add_row(
            name,
            f"{line.energy_j / 3.6e6:,.2f}",
            f"{answer.saved_ratio(name):.1%}",
            f"{line.slo_attainment:.2%}",
            f"{line.lost:,}",
            f"{line.ttft_p50_s * 1000:,.0f} / {line.ttft_p99_s * 1000:,.0f} ms",
            f"{line.tbt_p99_s * 1000:,.0f} ms",
            f"{line.gpu_hours:,.1f}",
            f"{line.instances_peak:,}",
            f"{line.reconfigurations:,}",
        )
    baseline_j = answer.scores[SINGLE_POOL].energy_j
    table.add_row(
        "bound", f"{answer.bound.energy_j / 3.6e6:,.2f}", f"{1 - answer.bound.energy_j / baseline_j:.1%}", style="dim"
    )
    return table
