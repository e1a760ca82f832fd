"""`wattray replay`: a trace's requests against an OpenAI endpoint, at their real arrival times."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from wattray.cli_simulate import (
    ColumnsOption,
    FormatOption,
    SkipBadOption,
    SloOption,
    SortOption,
    TraceOption,
    UnitOption,
    left_out_told,
)
from wattray.errors import WattrayError
from wattray.faults import faults_explained
from wattray.output_files import STDOUT, check_outputs, json_text, write_text

if TYPE_CHECKING:
    from wattray.load_generator import Progress

LOOK_AGAIN_S = 1.0
METER_WAIT_S = 20.0
"""A control actor that was just killed is back within seconds."""


def replay_command(
    trace: TraceOption,
    url: Annotated[str, typer.Option("--url", help="The endpoint, such as http://127.0.0.1:8000.")],
    speed: Annotated[float, typer.Option(help="This many times as fast as in the trace.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")] = None,
    start: Annotated[float, typer.Option(min=0.0, help="Where in the trace to begin, in seconds.")] = 0.0,
    trace_format: FormatOption = None,
    columns: ColumnsOption = None,
    sort: SortOption = False,
    skip_bad: SkipBadOption = False,
    time_unit: UnitOption = None,
    model: Annotated[str | None, typer.Option(help="Default: the first that the endpoint lists.")] = None,
    slo: SloOption = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Who pays: sent as x-wattray-tenant.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Send a trace's requests to an OpenAI endpoint as they came, and measure what a client sees."""
    from rich.table import Table

    from control_plane.hardware.profiles import DEFAULT_PROFILE
    from wattray.load_generator import replay
    from wattray.replay_results import replay_results
    from wattray.simulation_results import named_profile, settings_for
    from wattray.trace_files import read_requests, trace_request

    console = Console(stderr=True)
    with faults_explained():
        check_outputs(json=json_out)
        if not 0 < speed <= 1000:
            raise WattrayError(f"--speed {speed:g} must be above 0 and at most 1000")
        limits = settings_for(named_profile(DEFAULT_PROFILE), slo).slo.slo()
        read, left_out = read_requests(
            trace_request(trace, trace_format, time_unit=time_unit, columns=columns, sort=sort, skip_bad=skip_bad)
        )
        for line in left_out_told(left_out):
            console.print(line, markup=False, soft_wrap=True)
        loaded = read.trace.requests()
        requests = [request for request in loaded if request.arrival_s >= start][:limit]
        if not requests:
            raise WattrayError(
                f"--start {start:g}: no request arrives then; the last comes at {loaded[-1].arrival_s:g} s"
            )
        first_s = requests[0].arrival_s
        requests = [replace(one, arrival_s=(one.arrival_s - first_s) / speed) for one in requests]
        endpoint = asyncio.run(_endpoint(url.rstrip("/"), model, api_key_file, tenant))
        meter = _meter_of(endpoint.url)
        before_j = meter()
        with _bar(console, len(requests)) as changed:
            sent = asyncio.run(replay(endpoint, requests, changed))
        after_j = meter() if before_j is not None else None
        metered_j = after_j - before_j if after_j is not None and before_j is not None else None
        results = replay_results(sent, limits, metered_j)
        table = Table(title=f"{len(sent)} requests over {requests[-1].arrival_s:.0f} s", title_justify="left")
        table.add_column("measured by the client")
        table.add_column("", justify="right")
        for name, text in _shown(results):
            table.add_row(name, text)
        Console(stderr=json_out == STDOUT).print(table)
        for error in results["errors"]:
            console.print(error, markup=False)
        if json_out is not None:
            write_text(json_out, json_text(results))
    if results["failed"]:
        raise typer.Exit(1)


async def _endpoint(url: str, model: str | None, api_key_file: Path | None, tenant: str | None) -> Any:
    """Raises WattrayError where nothing there speaks OpenAI's interface."""
    import aiohttp

    from wattray.load_generator import Endpoint

    headers = {} if tenant is None else {"x-wattray-tenant": tenant}
    if api_key_file is not None:
        try:
            headers["authorization"] = f"Bearer {api_key_file.read_text().strip()}"
        except OSError as error:
            raise WattrayError(f"--api-key-file {api_key_file}: {error.strerror}") from None
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as session:
            async with session.get(f"{url}/v1/models") as answer:
                if answer.status != 200:
                    raise WattrayError(
                        f"--url {url}: /v1/models answers {answer.status}: {(await answer.text())[:200]}"
                    )
                served = [entry["id"] for entry in (await answer.json())["data"]]
            async with session.get(f"{url}/healthz") as answer:
                health = await answer.json() if answer.content_type == "application/json" else {}
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise WattrayError(f"--url {url}: no OpenAI endpoint answers there: {error}") from None
    if not served or (model is not None and model not in served):
        raise WattrayError(f"--model {model}: {url} serves {', '.join(served) or 'nothing'}")
    simulated = isinstance(health, dict) and health.get("engine") == "simulated"
    return Endpoint(url, model or served[0], simulated, headers)


def _meter_of(url: str) -> Callable[[], float | None]:
    """Reads the energy of all GPUs of the control plane behind this endpoint, where one is up here; else None."""
    from wattray import running

    recorded = running.load()
    if recorded is None or not running.is_up(recorded) or recorded.router_url.rstrip("/") != url:
        return lambda: None

    def read() -> float | None:
        from wattray.client import connect

        deadline_s = time.monotonic() + METER_WAIT_S
        while True:
            try:
                now = connect().status()
                if not now.missing:
                    return now.energy_j
            except WattrayError:
                if time.monotonic() > deadline_s:
                    return None
            if time.monotonic() > deadline_s:
                return None
            time.sleep(LOOK_AGAIN_S)

    return read


@contextmanager
def _bar(console: Console, total: int) -> "Iterator[Callable[[Progress], None]]":
    columns = (
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bars(*columns, console=console, refresh_per_second=4, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=total)

        def changed(now: "Progress") -> None:
            failed = f", {now.failed} failed" if now.failed else ""
            bars.update(bar, completed=now.completed + now.failed, description=f"{now.sent} sent{failed}")

        yield changed


def _shown(results: dict[str, Any]) -> list[tuple[str, str]]:
    def ms(name: str) -> str:
        return "–" if results[name] is None else f"{1000 * results[name]:,.0f} ms"

    energy_j = results["energy_j"]
    of = {"meters": "all serving GPUs", "answers": "as the answers tell it"}.get(results["energy_source"], "")
    return [
        ("completed", f"{results['completed']} of {results['sent']}"),
        ("SLO attainment", f"{100 * results['slo_attainment']:.2f} %"),
        ("TTFT p50 / p99", f"{ms('ttft_p50_s')} / {ms('ttft_p99_s')}"),
        ("mean TBT p50 / p99", f"{ms('tbt_p50_s')} / {ms('tbt_p99_s')}"),
        ("energy", "not known" if energy_j is None else f"{energy_j / 1000:,.1f} kJ, {of}"),
    ]
