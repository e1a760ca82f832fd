"""The command line. Heavy imports happen inside the commands, so that `--help` is quick."""

import dataclasses
import io
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from wattray.cli_lazy import LazyGroup
from wattray.config_file import read_config, read_settings, with_port
from wattray.errors import WattrayError
from wattray.faults import faults_explained

app = typer.Typer(
    help="Energy control plane for GPU clusters that run Ray.",
    no_args_is_help=True,
    cls=LazyGroup,
)
console = Console(stderr=True)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"wattray {version('wattray')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Energy control plane for GPU clusters that run Ray."""
    del version


ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
PortOption = Annotated[int | None, typer.Option("--port", help="Port of the OpenAI endpoint (8000).")]
RayPortOption = Annotated[int, typer.Option("--ray-port", help="Port of a Ray head started here.")]
DashboardPortOption = Annotated[int, typer.Option("--dashboard-port", help="Its dashboard's port.")]
MetricsPortOption = Annotated[int, typer.Option("--metrics-port", help="Its metrics endpoint's port.")]


def main() -> None:
    """Console entry: what a user can mend is one line and exit code 2, never a traceback."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding cannot show is shown escaped.
            stream.reconfigure(errors="backslashreplace")
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _as_interrupt)
    try:
        with faults_explained():
            code = app(standalone_mode=False)  # typer returns the exit code here, also 130 after Ctrl-C
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        console.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if not _is_usage_fault(error):
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(error.exit_code)  # type: ignore[attr-defined]


def _is_usage_fault(error: Exception) -> bool:
    """Whether the command line itself is wrong. Typer raises click's errors or, since 0.27, its own copies of them;
    both show themselves."""
    return any(kind.__name__ == "ClickException" for kind in type(error).__mro__)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


@app.command()
def up(
    config: ConfigOption = None,
    address: Annotated[
        str | None, typer.Option(help='A running Ray ("auto" finds one); default: find or start.')
    ] = None,
    rps: Annotated[float, typer.Option(help="Requests a second to be ready for at once.", min=0.0)] = 1.0,
    engine: Annotated[
        str | None,
        typer.Option(help="simulated; transformers: a real model on this machine's CPU or a GPU; vllm: on GPUs."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="How many GPUs (gpu.count).")] = None,
    port: PortOption = None,
    ray_port: RayPortOption = 6379,
    dashboard_port: DashboardPortOption = 8265,
    metrics_port: MetricsPortOption = 8090,
) -> None:
    """Bring the control plane up, on a running Ray or on a head that outlives this command."""
    settings = read_settings(config, port, engine, gpus)
    from control_plane.simulation.traces import synthetic_conversation
    from wattray import lifecycle
    from wattray.demo import first_load
    from wattray.ray_head import Ports

    expected = first_load(synthetic_conversation(30.0, scale=max(rps, 0.05) / 5.53))
    with console.status("starting") as status:
        ports = Ports(ray_port, dashboard_port, metrics_port)
        running = lifecycle.up(settings, ports, expected, address, lambda text: status.update(text))
    console.print(
        f"up: {running.router_url}/v1 serves {settings.serve.model_name!r}; status page {running.status_url}; "
        f"Ray dashboard {running.dashboard_url}"
    )
    if os.environ.get("RAY_AUTH_MODE") == "token":
        console.print("Ray wants a token: `ray job submit --address wattray://here` or `export RAY_AUTH_MODE=token`")


@app.command()
def down(
    address: Annotated[str | None, typer.Option(help="The Ray of a control plane that was started elsewhere.")] = None,
) -> None:
    """Reset every clock and end the control plane; the Ray head too where `up` started it."""
    from wattray.client import connect
    from wattray.running import load
    from wattray.take_down import take_down

    running = load() if address is None else connect(address).running
    if running is None:
        raise WattrayError("nothing is up here; a control plane on another Ray is named with --address")
    take_down(running, lambda text: console.print(text, markup=False))
    console.print("down")


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Pools, replicas, clocks, power and energy now."""
    from wattray.client import connect

    now = connect().status()
    if as_json:
        _print_json(dataclasses.asdict(now))
        return
    console.print(f"{now.power_w / 1000:.2f} kW, {now.energy_j / 1000:.0f} kJ since start, control: {now.control}")
    for name in now.missing:
        console.print(f"{name} does not answer", markup=False)
    table = Table("pool", "GPUs", "load", "replica", "wait+run", "clock", "wished")
    for pool in now.pools:
        for replica in pool.replicas or (None,):
            table.add_row(
                str(pool.pool),
                str(pool.gpu_budget),
                f"{pool.load_rps:.1f} rps",
                "none" if replica is None else f"{replica.replica_id} TP{replica.tp}",
                "" if replica is None else f"{replica.waiting}+{replica.running}",
                "" if replica is None else str(pool.clocks_mhz.get(replica.replica_id, "unknown")),
                "" if replica is None else str(pool.wished_mhz.get(replica.replica_id, "full")),
            )
    Console().print(table)
    for pool in now.pools:
        runs = Counter(f"TP{replica.tp}" for replica in pool.replicas)
        print(f"{pool.pool} runs {_counts(runs)}; wished {_counts(pool.wished_replicas)}")


def _counts(by_shape: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {shape}" for shape, count in by_shape.items()) or "nothing"


@app.command()
def explain(last: Annotated[int, typer.Option(help="How many.")] = 20, as_json: JsonOption = False) -> None:
    """The last decisions and why they were taken."""
    from wattray.client import connect

    decisions = connect().explain(last)
    if as_json:
        _print_json([dataclasses.asdict(decision) for decision in decisions])
        return
    table = Table("time", "by", "action", "why", "outcome")
    for decision in decisions:
        at = datetime.fromtimestamp(decision.at_s).astimezone()
        table.add_row(f"{at:%H:%M:%S}", decision.source, decision.action, decision.why, decision.outcome)
    Console().print(table)
    if decisions:
        last_at = datetime.fromtimestamp(decisions[-1].at_s).astimezone()
        print(f"the last one on {last_at:%Y-%m-%d at %H:%M:%S %Z}; --json has each one's id and time")


@app.command()
def advise(
    tariff: Annotated[float | None, typer.Option(help="Price of a kWh.", min=0.0)] = None, as_json: JsonOption = False
) -> None:
    """What control would have saved since it only recommends (gpu.control: recommend), and how sure that is."""
    from wattray.advise import advice_json, advice_told
    from wattray.client import connect

    now = connect().status()
    if as_json:
        _print_json(advice_json(now, tariff))
        return
    for line in advice_told(now, tariff):
        console.print(line, markup=False, highlight=False)


@app.command()
def demo(
    config: ConfigOption = None,
    trace: Annotated[
        list[str] | None, typer.Option(help="Any trace that `simulate` reads; default: generated.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Its columns, as for `simulate`.")] = None,
    time_unit: Annotated[str | None, typer.Option(help="Of times that are numbers: s, ms or us.")] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Sort the trace by time.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read.")] = False,
    start: Annotated[float, typer.Option(help="Where in the trace to begin, in seconds.", min=0.0)] = 600.0,
    seconds: Annotated[float, typer.Option(help="How much of the trace to replay.", min=10.0, max=3600.0)] = 110.0,
    seed: Annotated[int, typer.Option(help="Seed of the generated trace.")] = 1,
    training: Annotated[
        bool, typer.Option(help="A pipeline-parallel training job beside serving, on two GPUs of the same node.")
    ] = True,
    out: Annotated[Path, typer.Option(help="Folder of report.html and report.json.")] = Path("demo-report"),
    port: PortOption = None,
    ray_port: RayPortOption = 6379,
    dashboard_port: DashboardPortOption = 8265,
    metrics_port: MetricsPortOption = 8090,
) -> None:
    """Put the control plane before real HTTP traffic on a simulated GPU node, and show what it saved."""
    from train_jobs.torch_there import check_torch
    from wattray import demo as demo_module
    from wattray.demo_screen import DemoScreen
    from wattray.ray_head import Ports
    from wattray.trace_files import trace_request

    overrides = with_port(read_config(config), port)
    if training and isinstance(overrides.get("training", {}), dict):
        overrides["training"] = {"gpus": 2, **overrides.get("training", {})}
    if training:
        check_torch("the demo's training job", "; or leave it out with --no-training")
    settings = demo_module.demo_settings(overrides, str(config or "settings"))
    wanted = None
    if trace:
        wanted = trace_request(trace, time_unit=time_unit, columns=columns, sort=sort, skip_bad=skip_bad)
    requests = demo_module.demo_trace(wanted, start, seconds, seed)
    with DemoScreen(console) as screen:
        ports = Ports(ray_port, dashboard_port, metrics_port)
        report = demo_module.run_demo(settings, ports, requests, out, screen.say, screen.watch)
    screen.scoreboard(report, out)
    serving = report["serving"]
    if serving["requests_completed"] != serving["requests_sent"]:
        raise WattrayError(f"requests failed: {serving['errors'][:3]}")


def _print_json(values: Any) -> None:
    from wattray.output_files import json_text

    sys.stdout.write(json_text(values))


if __name__ == "__main__":
    main()
