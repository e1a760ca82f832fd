"""The command line of a training job. What a user can mend is one line and exit code 2, never a traceback."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.ray_address import answers, running_ray
from train_jobs.job import Job, JobError, NoPlannerError, parse_job, read_job
from train_jobs.schedule_lease import LeaseRefusedError
from train_jobs.torch_there import check_torch


def train(
    config: Annotated[Path | None, typer.Option(help="YAML file of the job; default: a two-stage pipeline.")] = None,
    name: Annotated[str | None, typer.Option(help="The job's name, instead of the file's.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations, instead of the file's.")] = None,
    address: Annotated[str, typer.Option(help="The Ray to run on.")] = "auto",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    run_out: Annotated[Path | None, typer.Option("--run", help="Write the whole run here, for plots.")] = None,
) -> None:
    """Train a pipeline-parallel model on Ray Train under a Perseus plan."""
    check_torch("training")
    overrides = {key: value for key, value in (("name", name), ("iterations", iterations)) if value is not None}
    job = read_job(config) if config is not None else Job()
    if overrides:
        job = parse_job({**job.model_dump(mode="json"), **overrides}, str(config or "job"))
    for option, path in (("--json", json_out), ("--run", run_out)):
        if path is not None and not path.parent.is_dir():
            raise JobError(f"{option} {path}: no such directory")
    found = running_ray() if address == "auto" else address
    if found is None or not answers(found):
        raise NoPlannerError(f"no Ray answers at {address!r}")
    from train_jobs.training_run import connect, run_training

    connect(found)
    result = run_training(job)
    report = result.report()
    if json_out is not None:
        json_out.write_text(json.dumps({"training": report}, indent=1))
    if run_out is not None:
        run_out.write_text(result.to_json())
    _show(report)


def _show(report: dict[str, Any]) -> None:
    print(f"{report['job']}: {report['iterations']} iterations, last loss {report['losses'][-1]:.6f}")
    print(
        f"energy {report['energy_j']:.0f} J, with every clock at its highest {report['baseline_energy_j']:.0f} J: "
        f"{report['energy_saved_ratio']:.1%} saved at {report['slowdown_ratio']:.4f} times the iteration time"
    )
    for phase in report["phases"]:
        print(
            f"  {phase['name']} the slowdown: {phase['iteration_time_s']:.3f} s, {phase['iteration_energy_j']:.0f} J "
            f"an iteration; at full clock {phase['all_max_time_s']:.3f} s, {phase['all_max_energy_j']:.0f} J"
        )


def main() -> None:
    """Console entry."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A process of 110 MiB that waits for a cloud's notice of preemption.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(train)
    try:
        app()
    except (JobError, LeaseRefusedError, NoPlannerError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
