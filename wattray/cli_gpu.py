"""``wattray gpu``: what this node's GPUs do, and their clocks by hand. Everything goes through gpud; light to start."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.gpu.gpud_client import GpudClient, GpudError, Granted
from actors.gpu.gpud_wire import DEFAULT_SOCKET, SOCKET_VARIABLE, default_socket
from control_plane.leases import Hold
from wattray.faults import fail

gpu_app = typer.Typer(help="This node's GPUs: readings, and clocks by hand.", no_args_is_help=True)

SocketOption = Annotated[
    Path | None, typer.Option("--socket", help=f"gpud's socket; default: ${SOCKET_VARIABLE}, else {DEFAULT_SOCKET}.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]

NOT_HELD = 1
"""Exit code of a lock that is not proved to be in force."""


@gpu_app.command("list")
def list_gpus(socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Every GPU of this node, now."""
    answer = _read(GpudClient(socket or default_socket()))
    if as_json:
        print(json.dumps({"gpus": answer["gpus"], "gpud": answer["gpud"]}, indent=2))
        return
    _tell_state(answer["gpud"])
    print(_table(answer["gpus"]))


@gpu_app.command()
def lock(
    gpu: Annotated[str, typer.Option("--gpu", help="The GPU's UUID, as `wattray gpu list` shows it.")],
    max_mhz: Annotated[float, typer.Option("--max-mhz", help="Highest SM clock; rounded down to a supported one.")],
    ttl: Annotated[float, typer.Option("--ttl", help="Seconds until the clock is full again by itself.")],
    owner: Annotated[str, typer.Option("--owner", help="Who holds it; the same owner may lock again.")],
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cap a GPU's clock for a while. Returns after reading back; exits 0 only where the clock is held or capped."""
    client = GpudClient(socket or default_socket())
    if max_mhz != int(max_mhz):
        fail(ValueError(f"--max-mhz must be a whole number of MHz, got {max_mhz}"))
    try:
        answer = client.lock(owner, {gpu: Hold(int(max_mhz))}, ttl, why="wattray gpu lock")
    except (GpudError, OverflowError) as error:
        fail(error)
    granted = answer.granted.get(gpu)
    if as_json:
        print(json.dumps({"granted": answer.granted, "refused": _refused(answer)}, indent=2, default=str))
    elif granted is None:
        print(f"refused: {answer.refused[gpu].message}", file=sys.stderr)
    else:
        runs = f", runs at {granted['runs_mhz']} MHz" if "runs_mhz" in granted else ""
        print(f"{gpu}: {granted['verdict']} at {granted['max_mhz']} MHz{runs}, for {ttl:g} s")
    if granted is None or granted["verdict"] not in ("held", "capped"):
        raise typer.Exit(NOT_HELD)


@gpu_app.command()
def reset(
    gpu: Annotated[str | None, typer.Option("--gpu", help="One GPU's UUID; default: all that gpud has set.")] = None,
    socket: SocketOption = None,
) -> None:
    """Full clock and the former power limit, whoever holds a lease. A GPU named by UUID is reset even where somebody
    else than gpud locked it; without --gpu those are left alone."""
    try:
        answer = GpudClient(socket or default_socket()).reset(None, None if gpu is None else [gpu], "wattray gpu reset")
    except GpudError as error:
        fail(error)
    for uuid in answer.granted:
        print(f"{uuid}: reset")
    if not answer.granted and not answer.refused:
        print("nothing was set")
    for refusal in answer.refused.values():
        print(f"refused: {refusal.message}", file=sys.stderr)
    if answer.refused:
        raise typer.Exit(NOT_HELD)


@gpu_app.command()
def watch(
    every: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)] = 1.0,
    count: Annotated[int | None, typer.Option(help="End after so many looks; default: on Ctrl-C.", min=1)] = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look again and again. A lost GPU is a row without readings; the others go on."""
    client, looks = GpudClient(socket or default_socket()), 0
    while True:
        answer = _read(client, every / 2)
        if as_json:
            print(json.dumps({"at": time.time(), "gpus": answer["gpus"]}), flush=True)
        else:
            if sys.stdout.isatty():
                print("\033[H\033[2J", end="")
            _tell_state(answer["gpud"])
            print(_table(answer["gpus"]), flush=True)
        looks += 1
        if count is not None and looks >= count:
            return
        time.sleep(every)


def _read(client: GpudClient, max_age_s: float = 0.2) -> dict[str, Any]:
    try:
        return client.read(max_age_s=max_age_s)
    except GpudError as error:
        fail(error)
        raise


def _tell_state(gpud: dict[str, Any]) -> None:
    if gpud["state"] != "ok":
        print(f"gpud: {gpud['state']}: {gpud['why']}", file=sys.stderr)


_COLUMNS = (
    "UUID",
    "name",
    "state",
    "MHz",
    "lock",
    "W",
    "limit W",
    "°C",
    "busy",
    "kJ",
    "held down by",
    "lease",
    "age s",
)


def _table(gpus: list[dict[str, Any]]) -> str:
    rows = [_COLUMNS, *(_row(gpu) for gpu in gpus)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(gpu: dict[str, Any]) -> tuple[str, ...]:
    def shown(column: str, form: str = "{:.0f}") -> str:
        return "N/A" if gpu.get(column) is None else form.format(gpu[column])

    lease, energy = gpu["lease"], gpu["energy"]
    energy_kj = "N/A" if energy is None or energy["source"] == "none" else f"{energy['total_j'] / 1000:.1f}"
    marked = "" if energy is None or energy["source"] != "power" else " (from power)"
    verdict = f" {gpu['verdict']}" if gpu["verdict"] else ""
    return (
        gpu["uuid"],
        gpu["name"] or "N/A",
        gpu["state"],
        shown("clock_mhz"),
        "full" if gpu["max_mhz"] is None else f"{gpu['max_mhz']}{verdict}",
        shown("power_w"),
        shown("power_limit_w"),
        shown("temperature_c"),
        shown("utilisation_ratio", "{:.0%}"),
        energy_kj + marked,
        "N/A" if gpu["events"] is None else ", ".join(gpu["events"]) or "-",
        "-" if lease is None else f"{lease['owner']} {lease['expires_in_s']:.0f} s",
        shown("age_s", "{:.1f}"),
    )


def _refused(answer: Granted) -> dict[str, dict[str, str]]:
    return {uuid: {"kind": refusal.kind, "message": refusal.message} for uuid, refusal in answer.refused.items()}
