"""What `--run DIR` keeps: the results, every decision and every request, for each policy."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, astuple, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from control_plane.domain import REQUEST_TYPES
from control_plane.simulation.outcome import Sample, Simulated
from control_plane.simulation.trace_reader import Origin
from wattray.output_files import json_text, write_text

_BLOCK = 1 << 20
"""Requests written at a time."""


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """``results.json``."""
    write_text(folder / "results.json", json_text(results))


def write_policy_run(folder: Path, origin: Origin | None, name: str, outcome: Simulated) -> None:
    """``NAME-decisions.jsonl``, the cluster over time in ``NAME-samples.csv``, and ``NAME-requests.parquet`` (``.csv``
    where pyarrow is not installed). A policy of the user's own, ``module:Class``, has ``module.Class`` in the names of
    its files."""
    name = name.replace(":", ".")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}-decisions.jsonl").open("w") as lines:
        for at_s, action in outcome.decisions:
            lines.write(json.dumps({"at_s": at_s, "action": type(action).__name__, **asdict(action)}) + "\n")
    with (folder / f"{name}-samples.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([field.name for field in fields(Sample)])
        rows.writerows(astuple(sample) for sample in outcome.samples)
    if find_spec("pyarrow") is not None:
        _write_parquet(folder / f"{name}-requests.parquet", outcome, origin)
    else:
        _write_csv(folder / f"{name}-requests.csv", outcome, origin)


def request_columns(outcome: Simulated, origin: Origin | None = None) -> Iterator[dict[str, Any]]:
    """A column per fact of every request, some rows at a time; times in seconds, NaN where it never came to that. With
    ``origin`` the file, line and tenant that each was read from."""
    kinds = np.array([str(kind) for kind in REQUEST_TYPES])
    names = np.array([*(str(replica_id) for _, replica_id in outcome.replicas), ""])
    energy_j = outcome.request_energy_j
    for first in range(0, max(1, len(outcome.trace)), _BLOCK):
        part = outcome.rows(first, first + _BLOCK)
        finished_s = np.frombuffer(part.columns.finished_ps, np.int64) / 1e12
        yield {
            **_read_from(origin, slice(first, first + _BLOCK)),
            "arrival_s": part.trace.arrival_ps / 1e12,
            "input_tokens": part.trace.input_tokens,
            "output_tokens": part.trace.output_tokens,
            "type": kinds[part.trace.types()],
            "replica": names[np.frombuffer(part.columns.replica, np.int32)],
            "queue_s": _finite(part.queue_s),
            "ttft_s": _finite(part.ttft_s),
            "mean_tbt_s": _finite(part.mean_tbt_s),
            "finished_s": np.where(part.done, finished_s, np.nan),
            "energy_j": energy_j[first : first + _BLOCK],
        }


def _read_from(origin: Origin | None, part: slice) -> dict[str, Any]:
    if origin is None:
        return {}
    rows = origin.take(part)
    columns: dict[str, Any] = {"line": rows.line}
    if len(origin.files) > 1:
        columns["file"] = np.array(origin.files)[rows.file]
    if origin.tenants != ("",):
        columns["tenant"] = np.array(origin.tenants)[rows.tenant]
    return columns


def _finite(times_s: Any) -> Any:
    return np.where(np.isfinite(times_s), times_s, np.nan)


def _write_parquet(path: Path, outcome: Simulated, origin: Origin | None) -> None:
    import pyarrow
    import pyarrow.parquet

    writer = None
    for columns in request_columns(outcome, origin):
        table = pyarrow.table(columns)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _write_csv(path: Path, outcome: Simulated, origin: Origin | None) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        for number, columns in enumerate(request_columns(outcome, origin)):
            if number == 0:
                writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
