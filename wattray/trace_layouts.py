"""Which columns a trace has: one of the known formats, told from the file, or the user's own names."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from control_plane.simulation.trace_times import Layout, TraceError
from control_plane.simulation.traces import (
    AZURE,
    BURSTGPT,
    BURSTGPT_RENAMED,
    COLUMNS,
    MOONCAKE,
    RPM_COLUMNS,
    VIDUR,
)
from control_plane.text_edges import csv_header
from wattray.trace_sources import is_jsonl, is_parquet, opened_lines, parquet_columns

FORMATS = ("azure", "mooncake", "burstgpt", "vidur", "openai", "rpm")
OPENAI = Layout("created", "usage.prompt_tokens", "usage.completion_tokens", unit="s", drops_failed=True)
"""Responses of OpenAI's API, which vLLM's server logs too, one a line; ``created`` is in seconds since 1970."""
_LAYOUTS: Mapping[str, Layout] = {
    "azure": replace(AZURE, drops_failed=True),
    "mooncake": MOONCAKE,
    "burstgpt": BURSTGPT,
    "burstgpt, renamed": BURSTGPT_RENAMED,
    "vidur": VIDUR,
    "openai": OPENAI,
}
_OWN = "own columns"
_FIELDS = ("time", "input", "output", "tenant")
_RESPONSE_IN = ("", "response.", "response.body.", "body.")
"""Where gateways and OpenAI's batches keep the response in a line of theirs."""


def read_columns(text: str | None) -> Mapping[str, str]:
    """``time=ts,input=prompt_tokens,output=completion_tokens,tenant=team``. Raises TraceError."""
    columns: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        key, _, name = (word.strip() for word in part.partition("="))
        if key not in _FIELDS or not name or key in columns:
            raise TraceError(
                f"--columns {part.strip()!r}: expected each of {', '.join(_FIELDS)} at most once, as KEY=NAME"
            )
        columns[key] = name
    return columns


def layout_of(form: str, columns: Mapping[str, str], unit: str | None) -> Layout:
    """The layout of a format, with the user's columns in it. Raises TraceError."""
    if form == _OWN:
        layout = Layout(columns["time"], columns["input"], columns["output"], columns.get("tenant"))
    else:
        base, _, inside = form.partition(" in ")
        layout = _LAYOUTS[base]
        if inside:
            layout = replace(
                layout, time=inside + layout.time, inputs=inside + layout.inputs, outputs=inside + layout.outputs
            )
        layout = replace(
            layout,
            time=columns.get("time", layout.time),
            inputs=columns.get("input", layout.inputs),
            outputs=columns.get("output", layout.outputs),
            tenant=columns.get("tenant", layout.tenant),
        )
        if "time" in columns:
            layout = replace(layout, unit=None, iso=True, whole_ms=False)
    if unit is not None:
        if layout.unit is not None:
            raise TraceError(f"--time-unit is for mooncake traces and --columns; {form} traces say their unit")
        layout = replace(layout, unit=unit)
    return layout


def guessed_format(path: Path, columns: Mapping[str, str]) -> str:
    """The format's name, told from the header or the first object. Raises TraceError."""
    if {"time", "input", "output"} <= set(columns):
        return _OWN
    if is_parquet(path):
        header = parquet_columns(path)
    elif is_jsonl(path):
        return _guessed_json(path)
    else:
        with opened_lines(path) as lines:
            header = csv_header(lines, str(path), TraceError)
    forms = (("burstgpt", BURSTGPT.columns), ("vidur", VIDUR.columns), ("rpm", RPM_COLUMNS))
    for form, names in forms:
        if set(names) <= set(header):
            return form
    # BurstGPT's own further column under Azure's names: times are still seconds.
    return "burstgpt, renamed" if {*COLUMNS, "Log Type"} <= set(header) else "azure"


def _guessed_json(path: Path) -> str:
    with opened_lines(path) as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return "mooncake"
    for inside in _RESPONSE_IN:
        found: Any = row
        for name in filter(None, inside.split(".")):
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, dict) and isinstance(found.get("usage"), dict) and "prompt_tokens" in found["usage"]:
            return f"openai in {inside}" if inside else "openai"
    return "mooncake"
