"""The command line. Heavy imports happen inside the commands, so that `--help` is quick."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import rich.markup
import typer
import yaml
from rich.console import Console
from rich.table import Table

from wattray.errors import WattrayError

app = typer.Typer(
    help="Energy control plane for GPU clusters that run Ray.", no_args_is_help=True, add_completion=False
)
console = Console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
PortOption = Annotated[int | None, typer.Option("--port", help="Port of the OpenAI endpoint (8000).")]
RayPortOption = Annotated[int, typer.Option("--ray-port", help="Port of a Ray head started here.")]
DashboardPortOption = Annotated[int, typer.Option("--dashboard-port", help="Its dashboard's port.")]
MetricsPortOption = Annotated[int, typer.Option("--metrics-port", help="Its metrics endpoint's port.")]


def main() -> None:
    """Console entry: a mendable error is one line and exit code 2, never a traceback."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _as_interrupt)
    from control_plane.hardware.profile_file import ProfileError
    from control_plane.settings import SettingsError
    from control_plane.simulation.traces import TraceError
    from train_jobs.background import TrainingFailedError

    try:
        code = app(standalone_mode=False)  # typer returns the exit code here, also 130 after Ctrl-C
        sys.exit(code if isinstance(code, int) else 0)
    except (WattrayError, SettingsError, TraceError, ProfileError, TrainingFailedError) as error:
        console.print("[red]error:[/]", rich.markup.escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(2)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        console.print("interrupted")
        sys.exit(130)
    except Exception as error:
        from click.exceptions import ClickException

        if not isinstance(error, ClickException):
            raise
        error.show()
        sys.exit(error.exit_code)


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
    port: PortOption = None,
    ray_port: RayPortOption = 6379,
    dashboard_port: DashboardPortOption = 8265,
    metrics_port: MetricsPortOption = 8090,
) -> None:
    """Bring the control plane up, on a running Ray or on a head that outlives this command."""
    settings = _settings(config, port)
    from control_plane.simulation.traces import synthetic_conversation
    from wattray import lifecycle
    from wattray.demo import first_load
    from wattray.ray_head import Ports

    expected = first_load(synthetic_conversation(30.0, scale=max(rps, 0.05) / 5.53))
    with console.status("starting") as status:
        ports = Ports(ray_port, dashboard_port, metrics_port)
        running = lifecycle.up(settings, ports, expected, address, lambda text: status.update(text))
    console.print(
        f"up: {running.router_url}/v1 serves {settings.serve.model_name!r}; Ray dashboard {running.dashboard_url}"
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
    table = Table("pool", "GPUs", "load", "replica", "waiting+running", "clock", "wished")
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


@app.command()
def explain(last: Annotated[int, typer.Option(help="How many.")] = 20, as_json: JsonOption = False) -> None:
    """The last decisions and why they were taken."""
    from wattray.client import connect

    decisions = connect().explain(last)
    if as_json:
        _print_json([dataclasses.asdict(decision) for decision in decisions])
        return
    table = Table("id", "by", "action", "why", "outcome")
    for decision in decisions:
        table.add_row(decision.decision_id, decision.source, decision.action, decision.why, decision.outcome)
    Console().print(table)


@app.command()
def demo(
    config: ConfigOption = None,
    trace: Annotated[Path | None, typer.Option(help="An Azure LLM inference trace (CSV); default: generated.")] = None,
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
    from wattray import demo as demo_module
    from wattray.demo_screen import DemoScreen
    from wattray.ray_head import Ports

    overrides = _read_yaml(config)
    if port is not None:
        overrides["serve"] = {**overrides.get("serve", {}), "port": port}
    if training:
        overrides["training"] = {"gpus": 2, **overrides.get("training", {})}
    settings = demo_module.demo_settings(overrides, str(config or "settings"))
    requests = demo_module.demo_trace(trace, start, seconds, seed)
    with DemoScreen(console) as screen:
        ports = Ports(ray_port, dashboard_port, metrics_port)
        report = demo_module.run_demo(settings, ports, requests, out, screen.say, screen.watch)
    screen.scoreboard(report, out)
    serving = report["serving"]
    if serving["requests_completed"] != serving["requests_sent"]:
        raise WattrayError(f"requests failed: {serving['errors'][:3]}")


# Commands whose modules need nothing of Ray.


def _register() -> None:
    from wattray.cli_frontier import frontier_command
    from wattray.cli_profile import profile_app
    from wattray.cli_simulate import bound_command, simulate_command

    app.command("simulate")(simulate_command)
    app.command("bound")(bound_command)
    app.command("frontier")(frontier_command)
    app.add_typer(profile_app, name="profile")


_register()


def _read_yaml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise WattrayError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WattrayError(f"--config {path}: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise WattrayError(f"--config {path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def _settings(path: Path | None, port: int | None) -> Any:
    from control_plane.settings import parse_settings

    values = _read_yaml(path)
    if port is not None:
        values["serve"] = {**values.get("serve", {}), "port": port}
    return parse_settings(values, str(path or "settings"))


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=1, default=str))


if __name__ == "__main__":
    main()
