"""`wattray straggler`: an operator announces that a pipeline of a training job is slow, or no longer."""

import re
from typing import Annotated

import typer

from wattray.faults import faults_explained

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def straggler_command(
    job: Annotated[str, typer.Argument(help="The job's name.")],
    pipeline: Annotated[int, typer.Option(help="Which data-parallel pipeline, counted from 0.", min=0)],
    slowdown: Annotated[float, typer.Option(help="It takes this many times a healthy iteration; 1: it has recovered.")],
    lasts: Annotated[str | None, typer.Option("--for", help="90s, 10m or 2h; until it is announced with 1.")] = None,
) -> None:
    """Announce a slow pipeline: the job's other pipelines slow down to its pace and no further."""
    with faults_explained():
        lasts_s = None if lasts is None else seconds_of(lasts)
        from wattray.client import connect

        connect().announce_straggler(job, pipeline, slowdown, lasts_s)
        until = "" if lasts is None else f" for {lasts}"
        print(f"{job}: pipeline {pipeline} takes {slowdown:g} times a healthy iteration{until}")


def seconds_of(text: str) -> float:
    """Of a duration such as 90s, 10m or 2h. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"--for {text}: expected a number of seconds, minutes or hours, such as 90s, 10m or 2h")
    return float(found[1]) * _UNITS_S[found[2]]
