"""Who used what: in a run that `simulate --run` kept, by tenant, type, replica or file; on what is up, by tenant."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.simulation.monthly import J_PER_KWH
from wattray.errors import WattrayError

_ENDING = "-requests"


@dataclass(frozen=True, slots=True)
class Use:
    """One group's part of a policy's run. ``energy_j`` sums over the groups to all that the run's meter read."""

    policy: str
    name: str
    requests: int
    input_tokens: int
    output_tokens: int
    energy_j: float
    cost: float | None
    """In the currency of the tariff; None without one."""

    @property
    def j_per_token(self) -> float:
        return self.energy_j / max(1, self.input_tokens + self.output_tokens)


def usage(folder: Path, by: str, tariff: float | None = None, policy: str | None = None) -> list[Use]:
    """The groups of every policy's run, the dearest first. ``tariff`` is per kWh. Raises WattrayError where the folder
    holds no run, or its records lack the column ``by``."""
    found = sorted(path for path in folder.glob(f"*{_ENDING}.*") if path.suffix in (".parquet", ".csv"))
    if policy is not None:
        found = [path for path in found if path.stem.removesuffix(_ENDING) == policy.replace(":", ".")]
    if not found:
        whose = "" if policy is None else f" of policy {policy!r}"
        raise WattrayError(f"--run {folder}: no request records{whose}; `wattray simulate --run {folder}` writes them")
    _check_tariff(tariff)
    uses: list[Use] = []
    for path in found:
        sums: dict[str, NDArray[np.float64]] = {}
        for names, columns in _blocks(path, by):
            groups, place = np.unique(names, return_inverse=True)
            added = np.array([np.bincount(place, column, len(groups)) for column in columns])
            for at, name in enumerate(groups.tolist()):
                sums[str(name)] = sums.get(str(name), np.zeros(len(added))) + added[:, at]
        for name, (requests, inputs, outputs, energy_j) in sorted(sums.items(), key=lambda item: -item[1][-1]):
            cost = None if tariff is None else float(energy_j) / J_PER_KWH * tariff
            counts = (int(requests), int(inputs), int(outputs))
            uses.append(Use(path.stem.removesuffix(_ENDING), name, *counts, float(energy_j), cost))
    return uses


def live_usage(tariff: float | None = None) -> list[Use]:
    """By tenant on the control plane that is up, the dearest first; energy of idle GPUs is nobody's. Raises
    WattrayError where none is up."""
    from wattray.client import connect

    _check_tariff(tariff)
    told = sorted(connect().usage().items(), key=lambda item: -item[1].energy_j)
    return [
        Use(
            *("live", tenant, used.requests, used.input_tokens, used.output_tokens, used.energy_j),
            None if tariff is None else used.energy_j / J_PER_KWH * tariff,
        )
        for tenant, used in told
    ]


def _check_tariff(tariff: float | None) -> None:
    if tariff is not None and not 0 <= tariff < 1e6:
        raise WattrayError(f"--tariff {tariff:g}: a price per kWh from 0 on, such as 0.12")


def _blocks(path: Path, by: str) -> Iterator[tuple[Any, list[Any]]]:
    """(names, [ones, input tokens, output tokens, joules]), some rows at a time."""
    summed = ("input_tokens", "output_tokens", "energy_j")
    try:
        for table in _tables(path):
            if by not in table.column_names:
                known = ", ".join(name for name in ("tenant", "type", "replica", "file") if name in table.column_names)
                hint = "; name the tenant with --columns tenant=NAME" if by == "tenant" else ""
                raise WattrayError(f"--by {by}: {path} has no such column; there are {known}{hint}")
            names = np.array(["" if name is None else str(name) for name in table[by].to_pylist()])
            yield names, [np.ones(len(names)), *(table[name].to_numpy().astype(float) for name in summed)]
    except ValueError as error:
        raise WattrayError(f"{path}: {error}") from None


def _tables(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix == ".csv":
        yield pyarrow.csv.read_csv(path)
        return
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1 << 20):
        yield pyarrow.Table.from_batches([batch])


def usage_json(uses: list[Use]) -> list[dict[str, Any]]:
    fields = ("policy", "name", "requests", "input_tokens", "output_tokens", "energy_j", "j_per_token", "cost")
    return [{field: getattr(use, field) for field in fields} for use in uses]


def tariff_of(folder: Path) -> float | None:
    """The tariff that the run was made with; None where it had none."""
    try:
        results = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError):
        return None
    tariff = results.get("costs", {}).get("tariff") if isinstance(results, dict) else None
    return tariff if isinstance(tariff, int | float) else None
