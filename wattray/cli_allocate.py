"""`wattray allocate`: which instances of which tensor parallelism and clock serve a load at the least power."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from control_plane.domain import IdleGpus
from wattray.faults import faults_explained
from wattray.output_files import STDOUT, check_outputs, json_text, write_text

if TYPE_CHECKING:
    from control_plane.hardware.machine_profile import MachineProfile
    from control_plane.serving.allocation import Allocation, Placement
    from control_plane.serving.allocation_curves import PoolDemand


def allocate_command(
    gpus: Annotated[int, typer.Option(min=1, help="GPUs there are.")],
    load: Annotated[Path, typer.Option(help="YAML, JSON or CSV of pools: type (SS..LL), rps, lengths, limits.")],
    profile: Annotated[str, typer.Option(help="Energy profile: a name or a file.")] = "llama2-70b-h100",
    slo: Annotated[str | None, typer.Option(help="Limits in seconds, such as ttft=1.0,tbt=0.06.")] = None,
    idle: Annotated[
        IdleGpus, typer.Option(help="What GPUs cost that no instance holds: nothing, or idle power.")
    ] = IdleGpus.RELEASED,
    merge: Annotated[bool, typer.Option(help="Pools may be merged: smaller requests served by larger pools.")] = True,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the allocation here.")] = None,
) -> None:
    """Allocate GPUs, tensor parallelism and clocks to pools at the least power that holds the SLO."""
    from control_plane.serving.allocation_curves import problem_of
    from control_plane.serving.allocation_solver import allocate
    from wattray.allocation_file import read_load
    from wattray.simulation_results import named_profile, settings_for

    with faults_explained():
        check_outputs(json=json_out)
        named = named_profile(profile)
        machine = named.with_slo(settings_for(named, slo).planning_slo())
        demands = read_load(load, machine.slo)
        idle_gpu_w = 0.0 if idle is IdleGpus.RELEASED else machine.gpu.idle_w
        start_s = time.perf_counter()
        problem = problem_of(demands, machine, gpus, idle_gpu_w, merge)
        curves_s = time.perf_counter() - start_s
        found = allocate(problem)
        report = {
            **as_json(found, problem.pools, demands, machine),
            "gpus": gpus,
            "profile": machine.name,
            "curves_s": curves_s,
            "solve_s": time.perf_counter() - start_s - curves_s,
        }
        Console(width=max(100, Console().width), stderr=json_out == STDOUT).print(_table(report))
        for line in _shortfalls(found, gpus):
            Console(stderr=True).print(line, markup=False)
        if json_out is not None:
            write_text(json_out, json_text(report))


def as_json(
    found: "Allocation", pools: "Sequence[str]", demands: "list[PoolDemand]", machine: "MachineProfile"
) -> dict[str, Any]:
    """Watts, requests per second and shares."""
    return {
        "instances": [_placement(placed, pools, demands, machine) for placed in found.placements],
        "gpus_used": found.gpus_used,
        "power_w": found.power_w,
        "lower_bound_w": found.lower_bound_w,
        "gap_ratio": found.gap_ratio,
        "method": found.method,
        "feasible": found.feasible,
        "shortfalls": [
            {"pool": s.pool, "served_ratio": s.served_ratio, "gpus_short": s.gpus_short} for s in found.shortfalls
        ],
    }


def _placement(
    placed: "Placement", pools: "Sequence[str]", demands: "list[PoolDemand]", machine: "MachineProfile"
) -> dict[str, Any]:
    from control_plane.hardware.steady_state import slo_use
    from control_plane.serving.allocation_curves import held_together

    names = list(pools[placed.group.first : placed.group.last + 1])
    served, mix = held_together([demand for demand in demands if str(demand.type) in names], machine)
    each = mix.scaled(placed.load_each / mix.rps)
    point = served.operating_point(placed.shape, each)
    return {
        "pools": names,
        "tp": placed.shape.tp,
        "freq_mhz": placed.shape.freq_mhz,
        "instances": placed.instances,
        "gpus": placed.gpus,
        "rps_each": placed.load_each,
        "power_w_each": placed.watts_each,
        "slo_slack_ratio": 1.0 - slo_use(served.machine(placed.shape), point, served.slo),
    }


def _table(report: dict[str, Any]) -> Table:
    bound = f"no allocation below {report['lower_bound_w'] / 1000:,.2f} kW"
    table = Table(
        title=f"{report['gpus_used']:,} of {report['gpus']:,} GPUs, {report['power_w'] / 1000:,.2f} kW ({bound})"
    )
    table.add_column("pools")
    for column in ("instances", "TP", "clock", "GPUs", "load each", "power each", "SLO slack"):
        table.add_column(column, justify="right")
    for line in report["instances"]:
        table.add_row(
            "+".join(line["pools"]),
            f"{line['instances']:,}",
            str(line["tp"]),
            f"{line['freq_mhz']} MHz",
            f"{line['gpus']:,}",
            f"{line['rps_each']:.3g} rps",
            f"{line['power_w_each']:,.0f} W",
            f"{line['slo_slack_ratio']:.1%}",
        )
    return table


def _shortfalls(found: "Allocation", gpus: int) -> list[str]:
    """What is not served, in words."""
    lines = [
        f"pool {short.pool}: no instance holds its SLO at any tensor parallelism and clock; it is not served"
        for short in found.shortfalls
        if short.gpus_short is None
    ]
    few = [short for short in found.shortfalls if short.gpus_short is not None]
    if few:
        lines.append(
            f"{gpus} GPUs are {few[0].gpus_short} too few for pools {', '.join(s.pool for s in few)}: this allocation "
            f"serves {few[0].served_ratio:.1%} of their load"
        )
    return lines


app = typer.Typer(add_completion=False)
app.command()(allocate_command)

if __name__ == "__main__":
    sys.exit(app())
