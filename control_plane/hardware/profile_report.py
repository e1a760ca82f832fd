"""What a profile says, as rows to print and plot: capacity, power and latency by type, shape and clock, and how the
machine compares with the published table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.domain import REQUEST_TYPES, ClassLoad, Load, RequestType, Shape
from control_plane.hardware.energy_table import TYPICAL_INPUT_TOKENS, TYPICAL_OUTPUT_TOKENS
from control_plane.hardware.machine_profile import MachineProfile

TABLE_LOAD_TOKENS_PER_S = 2000.0
"""Table I's load on every shape: medium, 2K tokens a second."""


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One request type on one shape. Power and latencies are at ``load_rps``: half of what this TP carries at the
    highest clock, the same at every clock; None where the type breaks the SLO at any load."""

    request_type: RequestType
    shape: Shape
    max_load_rps: float
    load_rps: float
    meets_slo: bool
    power_w: float | None
    energy_per_request_j: float | None
    ttft_p99_s: float | None
    tbt_s: float | None
    beyond: Sequence[str]


def curves(profile: MachineProfile) -> Sequence[CurveRow]:
    """Every type on every shape of the policy grid."""
    return [
        _curve_row(profile, request_type, Shape(tp, freq), profile.max_load(Shape(tp, profile.freqs_mhz[-1]), one) / 2)
        for request_type in REQUEST_TYPES
        for one in (one_request(request_type),)
        for tp in profile.tps
        for freq in profile.freqs_mhz
    ]


def one_request(request_type: RequestType) -> Load:
    """A request of this type a second, of typical lengths."""
    prompt, answer = TYPICAL_INPUT_TOKENS[request_type.input], TYPICAL_OUTPUT_TOKENS[request_type.output]
    return Load({request_type.input: ClassLoad(1.0, prompt, answer)})


def _curve_row(profile: MachineProfile, request_type: RequestType, shape: Shape, load_rps: float) -> CurveRow:
    one = one_request(request_type)
    most = profile.max_load(shape, one)
    if load_rps <= 0:
        return CurveRow(request_type, shape, most, 0.0, False, None, None, None, None, ())
    load = one.scaled(load_rps)
    point = profile.operating_point(shape, load)
    power_w = None if point.saturated else point.power_w
    return CurveRow(
        request_type,
        shape,
        most,
        load_rps,
        profile.meets_slo(shape, load),
        power_w,
        None if power_w is None else power_w / load_rps,
        None if point.saturated else point.ttft_p99_s[request_type.input],
        None if point.saturated else point.tbt_s,
        profile.beyond(shape, load),
    )


@dataclass(frozen=True, slots=True)
class TableRow:
    """A type's row of the published table: the best cell, what the fit to the table and what the machine's own power
    times latency would choose among the filled cells, and what each choice costs more than the best."""

    request_type: RequestType
    best: Shape
    best_wh: float
    fit_choice: Shape
    fit_regret_ratio: float
    machine_choice: Shape
    machine_regret_ratio: float
    cells: int
    slo_agreement: int
    """Cells of the row where machine and table agree on whether the SLO holds at 2K tokens a second."""


def table_rows(profile: MachineProfile) -> Sequence[TableRow]:
    """Empty for profiles without a published table."""
    table = profile.energy_table
    if table is None:
        return []
    rows = []
    for request_type in REQUEST_TYPES:
        measured = {Shape(tp, clock): cell.energy_wh for tp, clock, cell in table.measured(request_type)}
        best = min(measured, key=lambda shape: measured[shape])
        fitted = min(measured, key=lambda shape: table.fit.energy_wh(request_type, shape.tp, shape.freq_mhz))
        own = min(measured, key=lambda shape: power_latency_wh(profile, request_type, shape))
        cells = [Shape(tp, clock) for tp in sorted(table.cells[str(request_type)]) for clock in table.clocks_mhz]
        agreed = sum((shape in measured) == _holds(profile, request_type, shape) for shape in cells)
        rows.append(
            TableRow(
                request_type,
                best,
                measured[best],
                fitted,
                measured[fitted] / measured[best] - 1,
                own,
                measured[own] / measured[best] - 1,
                len(cells),
                agreed,
            )
        )
    return rows


def power_latency_wh(profile: MachineProfile, request_type: RequestType, shape: Shape) -> float:
    """Table I's quantity from the machine: the replica's power times one request's time in it."""
    point = profile.operating_point(_nearest(profile, shape), _table_load(request_type))
    if point.saturated:
        return math.inf
    answer = TYPICAL_OUTPUT_TOKENS[request_type.output]
    latency_s = point.ttft_p99_s[request_type.input] + (answer - 1) * point.tbt_s
    return point.power_w * latency_s / 3600


def _holds(profile: MachineProfile, request_type: RequestType, shape: Shape) -> bool:
    return profile.meets_slo(_nearest(profile, shape), _table_load(request_type))


def _table_load(request_type: RequestType) -> Load:
    one = one_request(request_type)
    total = one.total
    return one.scaled(TABLE_LOAD_TOKENS_PER_S / (total.input_tokens + total.output_tokens))


def _nearest(profile: MachineProfile, shape: Shape) -> Shape:
    """The table's rounded clock as the GPU has it."""
    return Shape(shape.tp, min(profile.gpu.freqs_mhz, key=lambda freq: abs(freq - shape.freq_mhz)))
