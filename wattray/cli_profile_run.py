"""``wattray profile run``: measures an engine on this node's GPUs and writes a profile for planner and simulator."""

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.gpu.gpud_client import GpudClient, GpudError
from actors.gpu.gpud_wire import default_socket
from control_plane.hardware.profile_file import NAME, dump_profile, parse_profile
from wattray.errors import WattrayError
from wattray.faults import faults_explained
from wattray.measured_profile import Subject, everything, profile_of
from wattray.output_files import check_outputs, json_text, write_text
from wattray.profiler import Load, Measured, Meter, Plan, ProfilerError, RepeatedCall, at_rest, clock_lease, measure

OWNER = "wattray-profile"


def run_command(
    out: Annotated[Path, typer.Option(help="The profile file to write; OUT.measured.json beside it has everything.")],
    name: Annotated[str, typer.Option(help="The profile's name.")],
    gpu: Annotated[list[str], typer.Option("--gpu", help="UUID of a GPU that the engine runs on; repeat for TP > 1.")],
    kv_tokens: Annotated[int, typer.Option(help="Tokens that the engine's KV cache holds; it says so.", min=1)],
    endpoint: Annotated[str | None, typer.Option(help="An OpenAI endpoint, as http://127.0.0.1:8000/v1.")] = None,
    model: Annotated[str, typer.Option(help="The model's name at the endpoint.")] = "",
    api_key_file: Annotated[Path | None, typer.Option(help="A file that holds the endpoint's API key.")] = None,
    call: Annotated[
        str | None, typer.Option("--callable", help="module:function; called with tokens, it returns one iteration.")
    ] = None,
    decode: Annotated[str, typer.Option(help="Streams at a time, at an endpoint.")] = "1,8,32,64",
    prefill: Annotated[str, typer.Option(help="Tokens of a prompt, at an endpoint.")] = "256,1024,2048",
    tokens: Annotated[str, typer.Option(help="Tokens of an iteration, of a callable.")] = "1,16,64,256,1024,2048",
    clocks: Annotated[str | None, typer.Option(help="Clocks in MHz to lock in turn; default: as it runs.")] = None,
    window: Annotated[float, typer.Option(help="Seconds of a window; below 5 s windows compare badly.", min=0.5)] = 5.0,
    windows: Annotated[int, typer.Option(help="Windows, each at another phase of the power sensor.", min=2)] = 5,
    warmup: Annotated[float, typer.Option(help="Seconds of load before anything is looked at.", min=0.0)] = 3.0,
    idle_w: Annotated[float | None, typer.Option(help="Watts of a GPU without a context; default: at rest.")] = None,
    socket: Annotated[Path | None, typer.Option("--socket", help="gpud's socket.")] = None,
) -> None:
    """Measure time and power by load and clock. Clocks are set only with --clocks, under a lease that gpud ends
    whatever happens; without it the present clock is measured, and gpud may run with --dry-run."""
    with faults_explained():
        check_outputs(out=out)
        if not re.fullmatch(NAME, name):
            raise WattrayError(f"--name {name!r}: letters, digits and . _ / - without spaces, at most 61")
        plan = Plan(warmup_s=warmup, window_s=window, windows=windows)
        meter = Meter(GpudClient(socket or default_socket()), tuple(dict.fromkeys(gpu)))
        try:
            loads = _loads(endpoint, model, api_key_file, call, decode, prefill, tokens)
            subject = _subject(name, meter, kv_tokens, idle_w, endpoint or str(call), window)
            measured = _swept(meter, loads, None if clocks is None else _numbers("--clocks", clocks), plan)
        except (ProfilerError, GpudError) as error:
            raise WattrayError(str(error)) from None
        write_text(out.with_name(f"{out.name}.measured.json"), json_text(everything(subject, measured)))
        text = dump_profile(profile_of(subject, measured))
        parse_profile(text, str(out))
        write_text(out, text)
        print(f"{out}: {len(measured)} loads measured")


def _swept(
    meter: Meter, loads: Sequence[Callable[[], Load]], clocks_mhz: Sequence[int] | None, plan: Plan
) -> list[Measured]:
    if clocks_mhz is None:
        measured = [_one(meter, None, make(), plan) for make in loads]
        # One profile has one clock, although heat and power move it a little from load to load.
        present_mhz = round(max(row.observed_mhz for row in measured))
        return [_at(row, present_mhz) for row in measured]
    with clock_lease(meter, OWNER, plan.lease_ttl_s) as set_clock:
        return list(_at_clocks(meter, loads, clocks_mhz, plan, set_clock))


def _at_clocks(
    meter: Meter,
    loads: Sequence[Callable[[], Load]],
    clocks_mhz: Sequence[int],
    plan: Plan,
    set_clock: Callable[[int], None],
) -> Iterator[Measured]:
    for freq_mhz in sorted(clocks_mhz, reverse=True):
        set_clock(freq_mhz)
        for make in loads:
            yield _one(meter, freq_mhz, make(), plan)


def _one(meter: Meter, freq_mhz: int | None, load: Load, plan: Plan) -> Measured:
    row = measure(meter, freq_mhz, load, plan)
    time_ms, power = row.iteration_s, row.power_w
    print(
        f"{row.freq_mhz} MHz, {row.tokens} tokens: {time_ms.mean * 1e3:.4g} ms ± {time_ms.ratio:.1%}, "
        f"{power.mean:.4g} W ± {power.ratio:.1%}",
        flush=True,
    )
    return row


def _at(row: Measured, freq_mhz: int) -> Measured:
    return replace(row, freq_mhz=freq_mhz)


def _subject(name: str, meter: Meter, kv_tokens: int, idle_w: float | None, source: str, rest_s: float) -> Subject:
    rows = meter.rows()
    rest_w = at_rest(meter, rest_s) / len(meter.gpus)
    limit_w = min(row["power_limit_w"] or float("inf") for row in rows)
    if limit_w == float("inf"):
        raise ProfilerError(f"GPU {rows[0]['uuid']} does not tell its power limit")
    told = f"wattray profile run on {len(rows)} x {rows[0]['name']}, {source}"
    return Subject(
        name, rows[0]["name"], len(rows), kv_tokens, rest_w, rest_w if idle_w is None else idle_w, limit_w, told
    )


def _loads(
    endpoint: str | None,
    model: str,
    api_key_file: Path | None,
    call: str | None,
    decode: str,
    prefill: str,
    tokens: str,
) -> list[Callable[[], Load]]:
    """Each makes a load that has not begun."""
    if (endpoint is None) == (call is None):
        raise WattrayError("give either --endpoint or --callable")
    if call is not None:
        iteration = _function(call)
        return [partial(_repeated, at, iteration) for at in _numbers("--tokens", tokens)]
    from wattray.endpoint_loads import Decoding, Endpoint, Prefilling

    if not model:
        raise WattrayError("--endpoint needs --model")
    key = None if api_key_file is None else api_key_file.read_text().strip()
    site = Endpoint(str(endpoint).rstrip("/"), model, key)
    streams, prompts = _numbers("--decode", decode), _numbers("--prefill", prefill)
    return [
        *(partial(Decoding, site, at) for at in streams),
        *(partial(Prefilling, site, at) for at in prompts if at > max(streams)),
    ]


def _repeated(tokens: int, iteration: Callable[[int], Callable[[], Any]]) -> Load:
    return RepeatedCall(tokens, iteration(tokens))


def _function(name: str) -> Callable[[int], Callable[[], Any]]:
    module, colon, function = name.partition(":")
    if not colon:
        raise WattrayError(f"--callable {name!r}: module:function is expected")
    try:
        found: Callable[[int], Callable[[], Any]] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise WattrayError(f"--callable {name}: {error}") from None
    return found


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise WattrayError(f"{option} {text!r}: whole numbers from 1, separated by commas")
    return sorted(set(numbers))
