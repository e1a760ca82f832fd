"""`wattray usage`: who used what, in a run that `wattray simulate --run` kept or on the control plane that is up."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from control_plane.text_edges import printable
from wattray.errors import WattrayError
from wattray.faults import faults_explained
from wattray.output_files import check_outputs, json_text, write_text


def usage_command(
    run: Annotated[
        Path | None, typer.Option("--run", help="The folder that `wattray simulate --run` wrote; default: what is up.")
    ] = None,
    by: Annotated[str, typer.Option(help="tenant, type, replica or file.")] = "tenant",
    tariff: Annotated[float | None, typer.Option(help="Price of a kWh; default: what the run was given.")] = None,
    policy: Annotated[str | None, typer.Option(help="One policy's run alone.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the groups here; - is stdout.")] = None,
) -> None:
    """Joules, tokens, joules per token and cost by tenant: of a simulated run, or of what is up."""
    from control_plane.simulation.monthly import J_PER_KWH
    from wattray.usage import live_usage, tariff_of, usage, usage_json

    with faults_explained():
        check_outputs(json=json_out)
        if run is None:
            if by != "tenant" or policy is not None:
                raise WattrayError("--by and --policy are for a run's folder; what is up tells use by tenant")
            uses = live_usage(tariff)
        else:
            uses = usage(run, by, tariff_of(run) if tariff is None else tariff, policy)
        table = Table(title=Text(f"use by {by}, simulated" if run is not None else "use by tenant since it came up"))
        table.add_column("policy")
        table.add_column(by)
        for column in ("requests", "Mtokens", "kWh", "J / token", "cost"):
            table.add_column(column, justify="right")
        for use in uses:
            table.add_row(
                Text(printable(use.policy)),
                Text(printable(use.name) or "(none)"),
                f"{use.requests:,}",
                f"{(use.input_tokens + use.output_tokens) / 1e6:,.2f}",
                f"{use.energy_j / J_PER_KWH:,.3f}",
                f"{use.j_per_token:.3f}",
                "" if use.cost is None else f"{use.cost:,.2f}",
            )
        Console(stderr=json_out == Path("-")).print(table)
        if json_out is not None:
            write_text(json_out, json_text(usage_json(uses)))


app = typer.Typer(add_completion=False)
app.command("usage")(usage_command)
