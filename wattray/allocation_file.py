"""The load of an allocation as people write it: YAML, JSON or CSV, one entry per pool.

An entry has ``type`` (SS … LL) and ``rps``, and may have ``input_tokens`` and ``output_tokens`` (means; typical ones
of the type by default), and ``ttft_s`` and ``tbt_s``, limits of this pool alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from control_plane.domain import LONG_FROM_TOKENS, MEDIUM_FROM_TOKENS, InputClass, RequestType, Slo
from control_plane.serving.allocation_curves import PoolDemand
from control_plane.serving.controller import TYPICAL_INPUT
from control_plane.serving.length_predictor import PRIOR_TOKENS
from control_plane.text_edges import csv_header, csv_rows, decoded, number, parse_json, parse_yaml
from wattray.errors import WattrayError

FIELDS = ("type", "rps", "input_tokens", "output_tokens", "ttft_s", "tbt_s")
MOST_BYTES = 1024 * 1024


class LoadFileError(WattrayError, ValueError):
    """The file is no load; the message names file, entry and field."""


def read_load(path: Path, slo: Slo) -> list[PoolDemand]:
    """``slo``: the limits where a pool has none of its own. Raises LoadFileError."""
    source = f"--load {path}"
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise LoadFileError(f"{source}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise LoadFileError(f"{source}: more than {MOST_BYTES:,} bytes; expected one entry for each of nine pools")
    text = decoded(content, source, LoadFileError)
    demands = [_demand(entry, where, slo) for where, entry in _entries(text, path, source)]
    if not any(demand.rps > 0 for demand in demands):
        raise LoadFileError(f"{source}: no pool has a load; expected entries such as {{type: MM, rps: 3.5}}")
    types = [demand.type for demand in demands]
    twice = next((kind for kind in types if types.count(kind) > 1), None)
    if twice is not None:
        raise LoadFileError(f"{source}: type {twice} is there twice; expected one entry for each type")
    return demands


def _entries(text: str, path: Path, source: str) -> list[tuple[str, dict[str, Any]]]:
    if path.name.endswith(".csv"):
        lines = text.splitlines()
        header = [name for name in csv_header(lines, source, LoadFileError) if name in FIELDS]
        columns = [*dict.fromkeys(("type", "rps", *header))]
        return [
            (
                f"{source}:{line}",
                {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if cell.strip()},
            )
            for line, cells in csv_rows(lines, columns, source, LoadFileError)
        ]
    if path.name.endswith(".json"):
        content = parse_json(text, source, LoadFileError)
    else:
        content, _ = parse_yaml(text, source, LoadFileError)
    if isinstance(content, dict):
        content = content.get("pools")
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise LoadFileError(
            f"{source}: expected a list of pools, each with type and rps, or a mapping with it as 'pools'"
        )
    return [(f"{source}: pool {at + 1}", entry) for at, entry in enumerate(content)]


def _demand(entry: dict[str, Any], where: str, slo: Slo) -> PoolDemand:
    unknown = sorted(str(name) for name in entry if name not in FIELDS)
    if unknown:
        raise LoadFileError(f"{where}: unknown field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    try:
        kind = RequestType.parse(str(entry.get("type", "")))
    except ValueError as error:
        raise LoadFileError(f"{where}: {error}") from None
    rps = _value(entry, "rps", where, least=0.0)
    if rps is None:
        raise LoadFileError(f"{where}: rps is missing; expected requests per second")
    inputs, outputs = _value(entry, "input_tokens", where, 1.0), _value(entry, "output_tokens", where, 1.0)
    inputs = TYPICAL_INPUT[kind.input] if inputs is None else inputs
    if InputClass.of(int(inputs)) is not kind.input:
        raise LoadFileError(
            f"{where}: input_tokens {inputs:g} are none of type {kind}: "
            f"S < {MEDIUM_FROM_TOKENS} <= M < {LONG_FROM_TOKENS} <= L"
        )
    ttft_s, tbt_s = _value(entry, "ttft_s", where), _value(entry, "tbt_s", where)
    own = slo
    if ttft_s is not None:
        field = {InputClass.SHORT: "ttft_short_s", InputClass.MEDIUM: "ttft_medium_s", InputClass.LONG: "ttft_long_s"}
        own = replace(own, **{field[kind.input]: ttft_s})
    if tbt_s is not None:
        own = replace(own, tbt_s=tbt_s)
    return PoolDemand(kind, rps, inputs, PRIOR_TOKENS[kind.output] if outputs is None else outputs, own)


def _value(entry: dict[str, Any], name: str, where: str, least: float | None = None) -> float | None:
    """A number above 0, or of at least ``least``; None where the field is not there."""
    given = entry.get(name)
    if given is None:
        return None
    value = number(given) if isinstance(given, str) else given
    if isinstance(value, bool) or not isinstance(value, (int, float)) or number(repr(value)) is None:
        raise LoadFileError(f"{where}: {name} {given!r} is not a number")
    if value < least if least is not None else value <= 0:
        raise LoadFileError(
            f"{where}: {name} {given!r} must be {'above 0' if least is None else f'at least {least:g}'}"
        )
    return float(value)
