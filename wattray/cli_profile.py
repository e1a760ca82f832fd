"""``wattray profile``: list, show, plot and import energy profiles. Files are read and written here only."""

import math
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from control_plane.domain import REQUEST_TYPES, InputClass
from control_plane.hardware.gpu_model import H100_SXM, GpuSpec
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_file import ProfileError, ProfileFile, dump_profile, parse_profile
from control_plane.hardware.profile_import import Target, from_dynamo, from_vllm_bench
from control_plane.hardware.profile_report import CurveRow, TableRow, curves, table_rows
from control_plane.hardware.profiles import DEFAULT_PROFILE, PROFILE_NAMES, load_profile
from control_plane.text_edges import parse_json, printable
from wattray.cli_profile_build import build
from wattray.cli_profile_check import check, refine
from wattray.cli_profile_run import run_command
from wattray.faults import faults_explained
from wattray.output_files import check_outputs, json_text, write_text
from wattray.profile_files import MOST_BYTES, profile_named, read_text
from wattray.report.page_file import write_page
from wattray.report.profile_plots import profile_page

profile_app = typer.Typer(help="Energy profiles: what a replica draws, carries and takes.", no_args_is_help=True)
import_app = typer.Typer(help="Make a profile file from another tool's measurements.", no_args_is_help=True)
profile_app.add_typer(import_app, name="import")
profile_app.command("build")(build)
profile_app.command("check")(check)
profile_app.command("refine")(refine)
profile_app.command("run")(run_command)

OUT = Console()
DYNAMO_FILES = (
    ("selected_prefill_interpolation/raw_data.npz", "selected_decode_interpolation/raw_data.npz"),
    ("prefill_raw_data.json", "decode_raw_data.json"),
)


@profile_app.command("list")
def list_profiles() -> None:
    """The profiles that come with wattray."""
    table = Table(title="Embedded profiles")
    for column in ("name", "TP", "clocks (MHz)", "era", "source"):
        table.add_column(column, overflow="fold")
    for name in PROFILE_NAMES:
        profile = load_profile(name)
        shown = f"{name} (default)" if name == DEFAULT_PROFILE else name
        clocks = f"{profile.freqs_mhz[0]}-{profile.freqs_mhz[-1]}"
        table.add_row(shown, "/".join(map(str, profile.tps)), clocks, profile.evidence.era, profile.evidence.source)
    OUT.print(table)


@profile_app.command()
def show(
    name: Annotated[str, typer.Argument(help="An embedded profile's name or a profile file.")] = DEFAULT_PROFILE,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write interactive plots to this HTML file.")] = None,
) -> None:
    """Power, TTFT, TBT and the highest load under the SLO by type, TP and clock; Table I where it applies."""
    with faults_explained():
        check_outputs(plot=plot)
        profile = profile_named(name)
        try:
            rows, table = curves(profile), table_rows(profile)
        except (OverflowError, ZeroDivisionError, FloatingPointError) as error:
            raise ProfileError(f"{name}: its numbers lead nowhere ({error}); are the units right?") from None
        if plot is not None:
            write_page(plot, profile_page(profile, rows, table))
        if as_json:
            sys.stdout.write(json_text(report(profile, rows, table)))
            return
        _print(profile, rows, table)
        if plot is not None:
            OUT.print(f"plots: {plot}", markup=False)


@import_app.command("dynamo")
def import_dynamo(
    results: Annotated[
        list[Path], typer.Argument(help="The profiler's output folder, or its prefill and its decode file.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The profile file to write.")],
    name: Annotated[str, typer.Option(help="The profile's name.")] = "dynamo",
    gpu: Annotated[str, typer.Option(help="The GPU it was measured on: h100 or h200.")] = "h100",
    clock: Annotated[int | None, typer.Option(help="Its clock in MHz; the highest where not given.")] = None,
    tp: Annotated[int | None, typer.Option(help="The TP; read from the results where not given.")] = None,
) -> None:
    """A profile from NVIDIA Dynamo's pre-deployment profiler (npz or JSON raw data)."""
    with faults_explained():
        check_outputs(out=out)
        prefill, decode = _dynamo_files(results)
        target = Target(name, _gpu(gpu), clock, tp)
        _write(from_dynamo(_arrays(prefill), _arrays(decode), target, str(prefill.parent)), out)


@import_app.command("vllm-bench")
def import_vllm_bench(
    results: Annotated[list[Path], typer.Argument(help="JSON results of several `vllm bench serve` runs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The profile file to write.")],
    tp: Annotated[int, typer.Option(help="The server's tensor parallelism.")],
    kv_tokens: Annotated[int, typer.Option(help="The server's KV cache in tokens (vLLM logs it at start).")],
    name: Annotated[str, typer.Option(help="The profile's name.")] = "vllm-bench",
    gpu: Annotated[str, typer.Option(help="The GPU it was measured on: h100 or h200.")] = "h100",
    clock: Annotated[int | None, typer.Option(help="Its clock in MHz; the highest where not given.")] = None,
) -> None:
    """A profile from `vllm bench serve --save-result` runs at different concurrencies and lengths."""
    with faults_explained():
        check_outputs(out=out)
        target = Target(name, _gpu(gpu), clock, tp, kv_tokens)
        runs = [(str(path), read_text(path)) for path in results]
        _write(from_vllm_bench(runs, target), out)


# files


def _dynamo_files(results: Sequence[Path]) -> tuple[Path, Path]:
    if len(results) == 2:
        return results[0], results[1]
    if len(results) != 1 or not results[0].is_dir():
        raise ProfileError("give the profiler's output folder, or its prefill and its decode file")
    for prefill, decode in DYNAMO_FILES:
        if (results[0] / prefill).is_file() and (results[0] / decode).is_file():
            return results[0] / prefill, results[0] / decode
    names = " or ".join(" + ".join(pair) for pair in DYNAMO_FILES)
    raise ProfileError(f"{results[0]}: no {names}")


def _arrays(path: Path) -> Mapping[str, Any]:
    """The raw data's arrays as lists."""
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                    raise ProfileError(f"{path}: unpacks to more than {MOST_BYTES:,} bytes")
            with np.load(path, allow_pickle=False) as arrays:
                return {name: np.atleast_1d(arrays[name]).tolist() for name in arrays.files}
        except (ValueError, zipfile.BadZipFile, EOFError, zlib.error, KeyError) as error:
            if isinstance(error, ProfileError):
                raise
            raise ProfileError(f"{path}: not an npz file, or a damaged one: {error}") from None
    content = parse_json(read_text(path), str(path), ProfileError)
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: line 1: expected a mapping of arrays, got {type(content).__name__}")
    return content


def _write(file: ProfileFile, out: Path) -> None:
    text = dump_profile(file)
    parse_profile(text, str(out))
    write_text(out, text)
    OUT.print(
        f"wrote {out}: {file.name}, TP{file.replicas[0].tp}, up to {file.batch_tokens} tokens a pass", markup=False
    )
    for note in file.notes:
        OUT.print(f"  note: {note}", markup=False)


def _gpu(name: str) -> GpuSpec:
    gpus = {"h100": H100_SXM, "h200": load_profile("llama8b-h200").gpu}
    if name.lower() not in gpus:
        raise ProfileError(f"unknown GPU {name!r}; known are {', '.join(gpus)}")
    return gpus[name.lower()]


# what is shown


def report(profile: MachineProfile, rows: Sequence[CurveRow], table: Sequence[TableRow]) -> dict[str, Any]:
    """Everything that is shown, as plain JSON."""
    evidence = profile.evidence
    return {
        "name": profile.name,
        "gpu": profile.gpu.name,
        "era": evidence.era,
        "source": evidence.source,
        "measured_freqs_mhz": list(evidence.measured_freqs_mhz),
        "notes": list(evidence.notes),
        "errors": dict(evidence.errors),
        "slo": {**{f"ttft_{c.name.lower()}_s": profile.slo.ttft_s(c) for c in InputClass}, "tbt_s": profile.slo.tbt_s},
        "tps": list(profile.tps),
        "freqs_mhz": list(profile.freqs_mhz),
        "idle_power_w": {str(tp): profile.idle_power_w(tp) for tp in profile.tps},
        "kv_tokens": {str(tp): profile.limits(tp).kv_tokens for tp in profile.tps},
        "curves": [
            {
                "type": str(row.request_type),
                "tp": row.shape.tp,
                "freq_mhz": row.shape.freq_mhz,
                "max_load_rps": row.max_load_rps,
                "load_rps": row.load_rps,
                "meets_slo": row.meets_slo,
                "power_w": row.power_w,
                "energy_per_request_j": row.energy_per_request_j,
                "ttft_p99_s": row.ttft_p99_s,
                "tbt_s": row.tbt_s,
                "beyond": list(row.beyond),
            }
            for row in rows
        ],
        "table1": [
            {
                "type": str(row.request_type),
                "best": str(row.best),
                "best_wh": row.best_wh,
                "fit_choice": str(row.fit_choice),
                "fit_regret_ratio": row.fit_regret_ratio,
                "machine_choice": str(row.machine_choice),
                "machine_regret_ratio": row.machine_regret_ratio,
                "cells": row.cells,
                "slo_agreement": row.slo_agreement,
            }
            for row in table
        ],
    }


def _print(profile: MachineProfile, rows: Sequence[CurveRow], table: Sequence[TableRow]) -> None:
    evidence = profile.evidence
    told = [f"{profile.name} on {profile.gpu.name}", f"era: {evidence.era}", f"source: {evidence.source}"]
    for line in (*told, *(f"note: {note}" for note in evidence.notes)):
        OUT.print(printable(line), markup=False, highlight=False)
    for name, error in evidence.errors.items():
        OUT.print(
            f"error, {name.replace('_', ' ')}: {error:.1%}" if not name.endswith("cells") else f"cells: {error:.0f}"
        )
    OUT.print(_load_table(profile, rows))
    OUT.print(_clock_table(profile, rows))
    if table:
        OUT.print(_table1(table))
    flags = sorted({flag.split(" is ")[1] for row in rows for flag in row.beyond if flag.startswith("clock")})
    if flags:
        OUT.print(f"beyond the measurements: clocks are {flags[0]}", highlight=False)


def _load_table(profile: MachineProfile, rows: Sequence[CurveRow]) -> Table:
    table = Table(title="Highest load under the SLO, requests/s of one replica (- breaks it)")
    table.add_column("type")
    clocks = _shown_clocks(profile)
    for tp in profile.tps:
        for clock in clocks:
            table.add_column(f"TP{tp}@{clock}", justify="right")
    found = {(row.request_type, row.shape.tp, row.shape.freq_mhz): row.max_load_rps for row in rows}
    for kind in REQUEST_TYPES:
        loads = [found[kind, tp, clock] for tp in profile.tps for clock in clocks]
        table.add_row(str(kind), *(f"{load:.2f}" if load > 0 else "-" for load in loads))
    return table


def _clock_table(profile: MachineProfile, rows: Sequence[CurveRow]) -> Table:
    table = Table(title="At half of that at the highest clock: the clock of least power, and the highest")
    for column in ("type", "TP", "load/s", "clock", "power W", "TTFT P99 ms", "TBT ms", "at highest W", "saved"):
        table.add_column(column, justify="right")
    for kind in REQUEST_TYPES:
        for tp in profile.tps:
            mine = [row for row in rows if row.request_type == kind and row.shape.tp == tp]
            fitting = [row for row in mine if row.meets_slo]
            if not fitting:
                continue
            least = min(fitting, key=lambda row: row.power_w or math.inf)
            least_w, top_w = least.power_w or math.nan, mine[-1].power_w or math.nan
            table.add_row(
                str(kind),
                str(tp),
                f"{least.load_rps:.2f}",
                str(least.shape.freq_mhz),
                f"{least_w:.0f}",
                f"{(least.ttft_p99_s or math.nan) * 1e3:.0f}",
                f"{(least.tbt_s or math.nan) * 1e3:.1f}",
                f"{top_w:.0f}",
                f"{1 - least_w / top_w:.0%}",
            )
    return table


def _table1(rows: Sequence[TableRow]) -> Table:
    table = Table(title="DynamoLLM Table I: the best cell, and what the fit and the machine would choose")
    for column in ("type", "best", "Wh", "fit", "regret", "machine", "regret", "SLO agrees"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row.request_type),
            str(row.best),
            f"{row.best_wh:g}",
            str(row.fit_choice),
            f"{row.fit_regret_ratio:.1%}",
            str(row.machine_choice),
            f"{row.machine_regret_ratio:.1%}",
            f"{row.slo_agreement}/{row.cells}",
        )
    fit, machine = (sum(values) / len(rows) for values in _regrets(rows))
    agreed, cells = sum(row.slo_agreement for row in rows), sum(row.cells for row in rows)
    table.add_row("mean", "", "", "", f"{fit:.1%}", "", f"{machine:.1%}", f"{agreed}/{cells}")
    return table


def _regrets(rows: Sequence[TableRow]) -> tuple[list[float], list[float]]:
    return [row.fit_regret_ratio for row in rows], [row.machine_regret_ratio for row in rows]


def _shown_clocks(profile: MachineProfile) -> Sequence[int]:
    """At most three a TP, so that the table fits a terminal."""
    clocks = profile.freqs_mhz
    return sorted({clocks[0], clocks[len(clocks) // 3], clocks[-1]})


if __name__ == "__main__":
    profile_app()
