"""`wattray train`: a training job from a file, on the control plane that is up or on one that is started for it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from wattray.faults import faults_explained
from wattray.output_files import check_outputs, json_text, write_text

if TYPE_CHECKING:
    from train_jobs.job import Job
    from wattray.running import Running

console = Console(stderr=True)


def train_command(
    job: Annotated[Path, typer.Argument(help="YAML file of the job; train_jobs/examples has some.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations, instead of the file's.")] = None,
    policy: Annotated[str | None, typer.Option(help="Who chooses the clocks, instead of the file's.")] = None,
) -> None:
    """Train a pipeline-parallel model under an energy plan, and once more with every clock at its highest.

    Runs on the control plane that is up here; where there is none, one is started for the run and ended with it."""
    with faults_explained():
        check_outputs(json=json_out)
        from train_jobs.job import parse_job, read_job

        asked = read_job(job)
        overrides = {key: value for key, value in (("iterations", iterations), ("policy", policy)) if value is not None}
        if overrides:
            asked = parse_job({**asked.model_dump(mode="json"), **overrides}, str(job))
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        with _control_plane(asked) as running:
            summary = _run(asked, running)
        if json_out is not None:
            write_text(json_out, json_text(summary))
        _show(summary)


def _run(job: "Job", running: "Running") -> dict[str, Any]:
    import ray
    from ray.train import TrainingFailedError

    from train_jobs.job import NoPlannerError
    from train_jobs.training_run import connect, run_with_baseline
    from wattray.errors import WattrayError

    ray.shutdown()
    connect(running.address)
    runs = 2 if job.managed else 1
    try:
        with _bar(f"training {job.name}", runs * job.iterations) as progress:
            return run_with_baseline(job, progress).summary()
    except NoPlannerError as error:
        raise WattrayError(str(error)) from None
    except TrainingFailedError as error:
        told = " ".join(str(error).split())
        raise WattrayError(f"the job failed more than max_failures ({job.max_failures}) times: {told}") from None


@contextmanager
def _control_plane(job: "Job") -> "Iterator[Running]":
    """The one that is up here, or one of the run's own."""
    from wattray import running
    from wattray.lifecycle import up_for_training
    from wattray.take_down import take_down

    recorded = running.load()
    if recorded is not None and running.is_up(recorded):
        from wattray.client import connect

        say_attached = f"on the control plane that is up at {recorded.address}"
        connect()
        console.print(say_attached, highlight=False)
        yield recorded
        return
    settings, ports = _own_plane(job)
    started = up_for_training(settings, ports, _say)
    try:
        yield started
    finally:
        take_down(started, lambda _: None)


def _own_plane(job: "Job") -> Any:
    """Settings and ports: as many GPUs as the job needs (and one that settings keep for serving), free ports."""
    import socket

    from control_plane.settings import parse_settings
    from wattray.ray_head import Ports

    probes = [socket.socket() for _ in range(4)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        free = [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
    gpus = {"gpu": {"count": job.ranks + 1}, "training": {"gpus": job.ranks}, "serve": {"port": free[3]}}
    return parse_settings(gpus), Ports(*free[:3])


def _say(text: str) -> None:
    console.print(f"· {text}", highlight=False)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line at every tenth."""
    if not console.is_terminal:
        said = [0]

        def tell(done: int) -> None:
            if done * 10 // total > said[0]:
                said[0] = done * 10 // total
                print(f"{what}: {done} of {total} iterations", file=sys.stderr)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


def _show(summary: dict[str, Any]) -> None:
    print(
        f"{summary['job']} ({summary['policy']}): {summary['iterations']} iterations of "
        f"{summary['iteration_time_s']:.3f} s, final loss {summary['final_loss']:.6f}\n"
        f"energy {summary['energy_j']:.0f} J, all clocks at their highest {summary['all_max_energy_j']:.0f} J "
        f"({summary['energy_saved_ratio']:.1%} saved, simulated GPUs), at {summary['slowdown_ratio']:.4f} times the "
        f"iteration time; straggler events: {summary['straggler_events']}"
    )
