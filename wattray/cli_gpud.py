"""``wattray gpud`` and ``wattray doctor``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from actors.gpu.gpud_wire import default_socket


def gpud_command(context: typer.Context) -> None:
    """The only writer of clocks on this node, as a process: see `wattray gpud --help`. Needs root or CAP_SYS_ADMIN."""
    from gpud.__main__ import run

    run(context.args)


def doctor_command(
    socket: Annotated[Path | None, typer.Option("--socket", help="gpud's socket.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """What stands in the way of reading and setting GPUs, here and on every node of the Ray that is up, and how to
    mend it. Exits 1 where something is a problem."""
    from wattray.doctor import examined

    nodes = examined(socket or default_socket())
    if as_json:
        told = {name: [asdict(finding) for finding in findings] for name, findings in nodes.items()}
        print(json.dumps({"nodes": told}, indent=2))
    else:
        for name, findings in nodes.items():
            print(name)
            for finding in findings:
                remedy = f"\n      remedy: {finding.remedy}" if finding.remedy else ""
                print(f"  {finding.level:8} {finding.what}: {finding.found}{remedy}")
    if any(finding.level == "problem" for findings in nodes.values() for finding in findings):
        raise typer.Exit(1)
