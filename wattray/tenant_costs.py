"""Who would pay what: each simulated run's energy by tenant, and of that the month's bill."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from control_plane.simulation.monthly import Monthly
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.trace_reader import Origin
from control_plane.text_edges import printable

MOST_SHOWN = 12
"""Tenants in a table; the others are one row."""


@dataclass(frozen=True, slots=True)
class TenantCost:
    """One tenant's part of a policy's run; energy, cost and CO2 are those of 30 days like the trace, by its share of
    the run's energy (idle GPUs' energy is shared in proportion)."""

    policy: str
    tenant: str
    requests: int
    tokens: int
    j_per_token: float
    energy_kwh: float
    cost: float | None
    co2_kg: float | None


class TenantBook:
    """Takes what it needs of a run when it ends: the run itself is not kept."""

    def __init__(self, origin: Origin | None) -> None:
        self._origin = None if origin is None or origin.tenants == ("",) else origin
        self._energy_j: dict[str, NDArray[Any]] = {}
        self._counts: tuple[NDArray[Any], NDArray[Any]] | None = None

    def keep(self, policy: str, outcome: Simulated) -> None:
        if self._origin is None:
            return
        place, tenants = self._origin.tenant, len(self._origin.tenants)
        if self._counts is None:
            tokens = outcome.trace.input_tokens.astype(float) + outcome.trace.output_tokens
            self._counts = np.bincount(place, minlength=tenants), np.bincount(place, tokens, tenants)
        self._energy_j[policy] = np.bincount(place, outcome.request_energy_j, tenants)

    def costs(self, months: Mapping[str, Monthly]) -> list[TenantCost]:
        """For each policy its tenants, the dearest first; nothing for a log without tenants."""
        if self._origin is None or self._counts is None:
            return []
        requests, tokens = self._counts
        told = []
        for policy, month in months.items():
            energy_j = self._energy_j[policy]
            shares = energy_j / max(energy_j.sum(), 1e-9)
            for at in np.argsort(-energy_j, kind="stable"):
                share = float(shares[at])
                told.append(
                    TenantCost(
                        policy,
                        self._origin.tenants[at],
                        int(requests[at]),
                        int(tokens[at]),
                        float(energy_j[at] / max(1.0, tokens[at])),
                        month.energy_kwh * share,
                        None if month.cost is None else month.cost * share,
                        None if month.co2_kg is None else month.co2_kg * share,
                    )
                )
        return told


HEAD = ("policy", "tenant", "requests", "J / token", "kWh", "cost", "kg CO2")


def tenant_rows(costs: list[TenantCost]) -> list[tuple[str, ...]]:
    """The cells under ``HEAD``; of each policy the dearest tenants, and all others in one row."""
    rows = []
    for policy in dict.fromkeys(cost.policy for cost in costs):
        ours = [cost for cost in costs if cost.policy == policy]
        rows += [_row(cost) for cost in ours[:MOST_SHOWN]]
        if others := ours[MOST_SHOWN:]:
            rows.append(_row(_together(others)))
    return rows


def _together(costs: list[TenantCost]) -> TenantCost:
    tokens = sum(cost.tokens for cost in costs)
    return TenantCost(
        costs[0].policy,
        f"{len(costs)} others",
        sum(cost.requests for cost in costs),
        tokens,
        sum(cost.j_per_token * cost.tokens for cost in costs) / max(1, tokens),
        sum(cost.energy_kwh for cost in costs),
        None if costs[0].cost is None else sum(cost.cost or 0.0 for cost in costs),
        None if costs[0].co2_kg is None else sum(cost.co2_kg or 0.0 for cost in costs),
    )


def _row(cost: TenantCost) -> tuple[str, ...]:
    return (
        cost.policy,
        printable(cost.tenant) or "(none)",
        f"{cost.requests:,}",
        f"{cost.j_per_token:.3f}",
        f"{cost.energy_kwh:,.1f}",
        "" if cost.cost is None else f"{cost.cost:,.2f}",
        "" if cost.co2_kg is None else f"{cost.co2_kg:,.1f}",
    )


def tenant_table(costs: list[TenantCost]) -> Table:
    table = Table(title=Text("Tenants in 30 days like this trace, simulated"))
    for at, column in enumerate(HEAD):
        table.add_column(column, justify="left" if at < 2 else "right")
    for row in tenant_rows(costs):
        table.add_row(*map(Text, row))
    return table
