"""What `--run DIR` keeps: the results, every decision and every request, for each policy."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from control_plane.domain import REQUEST_TYPES
from control_plane.simulation.comparison import Answer
from control_plane.simulation.outcome import Simulated


def write_run(folder: Path, answer: Answer, results: dict[str, Any]) -> None:
    """``results.json``, and per policy ``NAME-decisions.jsonl`` and ``NAME-requests.parquet`` (``.csv`` where pyarrow
    is not installed)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, outcome in answer.outcomes.items():
        with (folder / f"{name}-decisions.jsonl").open("w") as lines:
            for at_s, action in outcome.decisions:
                lines.write(json.dumps({"at_s": at_s, "action": type(action).__name__, **asdict(action)}) + "\n")
        if find_spec("pyarrow") is not None:
            _write_parquet(folder / f"{name}-requests.parquet", outcome)
        else:
            _write_csv(folder / f"{name}-requests.csv", outcome)


def request_columns(outcome: Simulated) -> dict[str, Any]:
    """A column per fact of every request; times in seconds, NaN where it never came to that."""
    kinds = np.array([str(kind) for kind in REQUEST_TYPES])
    replica = np.frombuffer(outcome.columns.replica, np.int32)
    names = np.array([*(str(replica_id) for _, replica_id in outcome.replicas), ""])
    finished_s = np.frombuffer(outcome.columns.finished_ps, np.int64) / 1e12
    return {
        "arrival_s": outcome.trace.arrival_ps / 1e12,
        "input_tokens": outcome.trace.input_tokens,
        "output_tokens": outcome.trace.output_tokens,
        "type": kinds[outcome.trace.types()],
        "replica": names[replica],
        "queue_s": _finite(outcome.queue_s),
        "ttft_s": _finite(outcome.ttft_s),
        "mean_tbt_s": _finite(outcome.mean_tbt_s),
        "finished_s": np.where(outcome.done, finished_s, np.nan),
        "energy_j": outcome.request_energy_j,
    }


def _finite(times_s: Any) -> Any:
    return np.where(np.isfinite(times_s), times_s, np.nan)


def _write_parquet(path: Path, outcome: Simulated) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(request_columns(outcome)), path)


def _write_csv(path: Path, outcome: Simulated) -> None:
    columns = request_columns(outcome)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(_rows(columns))


def _rows(columns: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in columns.values()), strict=True)
