"""Fit the embedded profiles to the measurements and print the errors on rows held out.

    python benchmarks/profiles/fit.py [--data DIR] [--write]

``--write`` renews control_plane/hardware/fits.json, which is all that the package carries of the data.
"""

import argparse
import csv
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from control_plane.domain import InputClass, OutputClass, RequestType  # noqa: E402
from control_plane.hardware.energy_table import EnergyTable, TableFit  # noqa: E402
from control_plane.hardware.fitted_times import NormFit, PowerFit, WholePassFit  # noqa: E402

Floats = NDArray[np.float64]
SPLITS, HELD_OUT = 20, 8
LLAMA2_KV_BYTES, H100_BYTES_PER_S = 327_680, 3.35e12 * 0.85
DECODE_CONTEXT = 576
"""splitwise decodes 128 tokens after 512: this context in the mean."""
WHOLE_PASS, CHUNK = 8192, 2048


@dataclass(frozen=True)
class Splitwise:
    """Medians of Llama2-70B on H100 by (TP, prompt, batch); TP2 at batch 64 is an artefact and left out."""

    tp: Floats
    prompt: Floats
    batch: Floats
    prefill_s: Floats
    decode_s: Floats


def read_splitwise(path: Path) -> Splitwise:
    repeats: dict[tuple[int, int, int], list[tuple[float, float]]] = defaultdict(list)
    with path.open() as rows:
        for row in csv.DictReader(rows):
            if (row["model"], row["hardware"]) == ("llama2-70b", "h100-80gb"):
                key = int(row["tensor_parallel"]), int(row["prompt_size"]), int(row["batch_size"])
                repeats[key].append((float(row["prompt_time"]) / 1e3, float(row["token_time"]) / 1e3))
    repeats.pop((2, 512, 64), None)
    keys = sorted(repeats)
    medians = [[statistics.median(times) for times in zip(*repeats[key], strict=True)] for key in keys]
    columns = np.array([[*key, *times] for key, times in zip(keys, medians, strict=True)]).T
    return Splitwise(*columns)


# Llama2-70B, H100, 2023

PASS_START = {
    "floor_ms": 48.0, "linear_ms": 0.29, "attention_ms": 2e-6, "allreduce_ms": 0.01, "switch_ms": 0.012,
    "weights_ms": 35.0, "launch_ms": 18.0, "peer_ms": 0.6, "decoder_ms": 0.05, "decoder2_ms": 0.02,
}  # fmt: skip
PREFILL_NAMES = list(PASS_START)[:5]
DECODE_NAMES = list(PASS_START)[5:]


def pass_fit(values: dict[str, float]) -> WholePassFit:
    return WholePassFit(switch_tokens=2048, **values)


def prefill_s(fit: WholePassFit, data: Splitwise, rows: NDArray[np.int64]) -> Floats:
    """As the machine runs them: passes of at most 8192 tokens."""
    found = []
    for row in rows:
        tp, prompt, batch = int(data.tp[row]), data.prompt[row], data.batch[row]
        whole, rest = divmod(prompt * batch, WHOLE_PASS)
        time_s = whole * float(fit.prefill_s(tp, np.array(float(WHOLE_PASS))))
        time_s += float(fit.prefill_s(tp, np.array(rest))) if rest else 0.0
        found.append(time_s + fit.attention_s(tp) * batch * prompt**2 / 2)
    return np.array(found)


def decode_s(fit: WholePassFit, data: Splitwise, rows: NDArray[np.int64]) -> Floats:
    found = []
    for row in rows:
        tp, batch = int(data.tp[row]), data.batch[row]
        found.append(float(fit.iteration_s(tp, np.array(batch))) + contexts_s(tp, batch))
    return np.array(found)


def contexts_s(tp: int, batch: float) -> float:
    return LLAMA2_KV_BYTES * DECODE_CONTEXT * batch / (tp * H100_BYTES_PER_S)


def fit_pass(data: Splitwise, rows: NDArray[np.int64]) -> WholePassFit:
    values = dict(PASS_START)
    values |= solve(
        {name: PASS_START[name] for name in PREFILL_NAMES},
        lambda found: np.log(prefill_s(pass_fit(values | found), data, rows) / data.prefill_s[rows]),
        loss_at=0.05,
    )
    values |= solve(
        {name: PASS_START[name] for name in DECODE_NAMES},
        lambda found: np.log(decode_s(pass_fit(values | found), data, rows) / data.decode_s[rows]),
        loss_at=0.03,
    )
    return pass_fit({name: float(f"{value:.5g}") for name, value in values.items()})


def pass_cells(fit: WholePassFit, data: Splitwise) -> dict[str, list[dict[str, float]]]:
    """Measured iterations per TP, contexts and attention taken off: decodes of B tokens, prompts alone."""
    found: dict[str, list[dict[str, float]]] = {}
    for tp in (2, 4, 8):
        cells = {}
        for row in np.flatnonzero(data.tp == tp):
            prompt, batch = int(data.prompt[row]), int(data.batch[row])
            if prompt == 512:
                cells[batch] = data.decode_s[row] - contexts_s(tp, batch)
            if batch == 1:
                cells[prompt] = data.prefill_s[row] - fit.attention_s(tp) * prompt**2 / 2
        found[str(tp)] = [{"tokens": tokens, "ms": round(cells[tokens] * 1e3, 3)} for tokens in sorted(cells)]
    return found


def fit_llama2(data: Splitwise) -> dict[str, Any]:
    everything = np.arange(len(data.tp))
    prefill_errors, decode_errors = [], []
    for train, held in splits(len(everything)):
        fit = fit_pass(data, train)
        prefill_errors.append(mean_error(prefill_s(fit, data, held), data.prefill_s[held]))
        decode_errors.append(mean_error(decode_s(fit, data, held), data.decode_s[held]))
    fit = fit_pass(data, everything)
    errors = {
        "prefill_held_out": statistics.mean(prefill_errors),
        "prefill_held_out_worst_split": max(prefill_errors),
        "prefill_in_sample": mean_error(prefill_s(fit, data, everything), data.prefill_s),
        "decode_held_out": statistics.mean(decode_errors),
        "decode_held_out_worst_split": max(decode_errors),
        "decode_in_sample": mean_error(decode_s(fit, data, everything), data.decode_s),
    }
    show("Llama2-70B on H100, 2023 engine (splitwise)", errors)
    return {"fit": fit.model_dump(), "cells": pass_cells(fit, data), "errors": rounded(errors)}


# Llama-8B, H200


@dataclass(frozen=True)
class Points:
    """Measured iterations: batch, tokens, contexts of the decoders, pairs of prefill attention; seconds, watts
    (NaN where the measuring disturbed them)."""

    batch: Floats
    tokens: Floats
    context: Floats
    pairs: Floats
    time_s: Floats
    power_w: Floats


UNDISTURBED_MS = {(1, 128): 10.48, (1, 512): 15.98}
"""Launch-bound prefills were slowed down by reading the energy counter: their times without it."""


def read_h200(path: Path) -> Points:
    measured = json.loads(path.read_text())
    rows = []
    for point in measured["prefill"]:
        batch, prompt = point["batch"], point["prompt"]
        disturbed = (batch, prompt) in UNDISTURBED_MS
        time_ms = UNDISTURBED_MS.get((batch, prompt), point["ms"])
        power_w = math.nan if disturbed else point["energy_W"]
        rows.append((batch, batch * prompt, 0, batch * prompt**2 / 2, time_ms / 1e3, power_w))
    for point in measured["decode"]:
        if not point["mode"].endswith("eager"):
            batch, context = point["batch"], point["context"]
            rows.append((batch, batch, batch * context, 0, point["ms"] / 1e3, point["energy_W"]))
    return Points(*np.array(rows, dtype=np.float64).T)


NORM_START = {"floor_ms": 5.7, "token_ms": 0.0275, "exponent": 1.5, "context_ms": 30e-6, "attention_ms": 5e-7}
POWER_START = {"mem_w": 150.0, "sm_w": 530.0, "saturation_tokens": 60.0}
H200_CONTEXT_W, H200_LIMIT_W, H200_TOP_MHZ, H200_CAPPED_MHZ = 127.0, 700.0, 1980, 1590


def norm_s(fit: NormFit, data: Points, rows: NDArray[np.int64]) -> Floats:
    tokens = data.tokens[rows]
    whole, rest = np.divmod(tokens, CHUNK)
    time_s = whole * fit.iteration_s(np.array(float(CHUNK)), H200_TOP_MHZ, H200_TOP_MHZ)
    time_s += np.where(rest > 0, fit.iteration_s(rest, H200_TOP_MHZ, H200_TOP_MHZ), 0.0)
    result: Floats = time_s + (fit.context_ms * data.context[rows] + fit.attention_ms * data.pairs[rows]) / 1e3
    return result


def power_w(fit: PowerFit, tokens: Floats) -> Floats:
    saturation = 1 - np.exp(-np.minimum(tokens, CHUNK) / fit.saturation_tokens)
    drawn_w = H200_CONTEXT_W + fit.mem_w * (1 - 0.75 * saturation) + fit.sm_w * (0.287 + 0.713 * saturation)
    return np.minimum(drawn_w, H200_LIMIT_W)


def fit_points(data: Points, rows: NDArray[np.int64]) -> tuple[NormFit, PowerFit]:
    times = solve(
        NORM_START,
        lambda found: np.log(norm_s(NormFit(capped_mhz=H200_CAPPED_MHZ, **found), data, rows) / data.time_s[rows]),
        loss_at=0.05,
    )
    known = rows[~np.isnan(data.power_w[rows])]
    powers = solve(POWER_START, lambda found: power_w(PowerFit(**found), data.tokens[known]) / data.power_w[known] - 1)
    digits = {name: float(f"{value:.5g}") for name, value in (times | powers).items()}
    return (
        NormFit(capped_mhz=H200_CAPPED_MHZ, **{name: digits[name] for name in NORM_START}),
        PowerFit(**{name: digits[name] for name in POWER_START}),
    )


def norm_cells(fit: NormFit, data: Points) -> list[dict[str, float]]:
    """Medians over contexts, contexts and attention taken off: decodes, and prompts alone in a pass."""
    found: dict[int, list[float]] = defaultdict(list)
    rest_s = data.time_s - (fit.context_ms * data.context + fit.attention_ms * data.pairs) / 1e3
    for row, tokens in enumerate(data.tokens.astype(int).tolist()):
        alone = data.batch[row] == 1 and max(data.batch[data.context > 0]) < tokens <= CHUNK
        if data.context[row] > 0 or alone:
            found[tokens].append(float(rest_s[row]))
    return [{"tokens": tokens, "ms": round(statistics.median(found[tokens]) * 1e3, 4)} for tokens in sorted(found)]


def fit_llama8b(data: Points) -> dict[str, Any]:
    everything = np.arange(len(data.tokens))
    time_errors, power_errors = [], []
    for train, held in splits(len(everything)):
        times, powers = fit_points(data, train)
        time_errors.append(mean_error(norm_s(times, data, held), data.time_s[held]))
        power_errors.append(mean_error(power_w(powers, data.tokens[held]), data.power_w[held]))
    times, powers = fit_points(data, everything)
    power_apart = power_w(powers, data.tokens) / data.power_w - 1
    errors = {
        "time_held_out": statistics.mean(time_errors),
        "time_held_out_worst_split": max(time_errors),
        "time_in_sample": mean_error(norm_s(times, data, everything), data.time_s),
        "time_worst_point": float(np.max(np.abs(norm_s(times, data, everything) / data.time_s - 1))),
        "power_held_out": statistics.mean(power_errors),
        "power_held_out_worst_split": max(power_errors),
        "power_in_sample": float(np.nanmean(np.abs(power_apart))),
        "power_worst_point": float(np.nanmax(np.abs(power_apart))),
    }
    show("Llama-8B on H200 (measured points)", errors)
    return {
        "times": times.model_dump(),
        "power": powers.model_dump(),
        "cells": norm_cells(times, data),
        "errors": rounded(errors),
    }


# Table I


def read_table(path: Path) -> dict[str, dict[str, list[float | None]]]:
    cells: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    with path.open() as rows:
        for row in csv.DictReader(rows):
            cells[row["cls"]][row["tp"]].append(float(row["wh"]) if row["wh"] else None)
    return {name: dict(by_tp) for name, by_tp in cells.items()}


TABLE_START = {
    "prefill": 0.22, "prefill_growth": 0.4, "decode": 2.5, "decode_growth": 0.4, "context": 0.4,
    "inverse": 0.3, "square": 0.2, "inputs.S": 0.25, "inputs.L": 4.0, "outputs.S": 0.2, "outputs.L": 1.6,
    "prompt_use": 0.22, "answer_use": 0.08, "use_clock": 0.7,
}  # fmt: skip


def table_fit(found: dict[str, float]) -> TableFit:
    plain = {name: value for name, value in found.items() if "." not in name}
    inputs = {InputClass.SHORT: found["inputs.S"], InputClass.MEDIUM: 1.0, InputClass.LONG: found["inputs.L"]}
    outputs = {OutputClass.SHORT: found["outputs.S"], OutputClass.MEDIUM: 1.0, OutputClass.LONG: found["outputs.L"]}
    return TableFit(inputs=inputs, outputs=outputs, **plain)


TableCells = Sequence[tuple[RequestType, int, int, float]]


def fit_cells(cells: TableCells) -> TableFit:
    def apart(found: dict[str, float]) -> Floats:
        fit = table_fit(found)
        errors = [math.log(max(1e-3, fit.energy_wh(kind, tp, mhz)) / wh) for kind, tp, mhz, wh in cells]
        drift = [0.01 * math.log(abs(found[name] / start)) for name, start in TABLE_START.items()]
        return np.array(errors + drift)

    found = solve(TABLE_START, apart, signed=("use_clock", "prefill_growth", "decode_growth"))
    return table_fit({name: float(f"{value:.5g}") for name, value in found.items()})


def fit_table(cells: dict[str, dict[str, list[float | None]]]) -> dict[str, Any]:
    clocks_mhz = (800, 1200, 1600, 2000)
    filled: TableCells = [
        (RequestType.parse(name), int(tp), clocks_mhz[index], wh)
        for name, by_tp in cells.items()
        for tp, row in by_tp.items()
        for index, wh in enumerate(row)
        if wh is not None
    ]
    held_errors, held_regrets = [], []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(filled))
        predicted: dict[int, float] = {}
        for fold in range(11):
            held = set(order[fold::11].tolist())
            fit = fit_cells([cell for index, cell in enumerate(filled) if index not in held])
            predicted |= {index: fit.energy_wh(*filled[index][:3]) for index in held}
        held_errors.append(statistics.mean(abs(predicted[index] / cell[3] - 1) for index, cell in enumerate(filled)))
        held_regrets.append(regret(filled, predicted))
    fit = fit_cells(filled)
    table = EnergyTable(clocks_mhz=clocks_mhz, cells=cells, fit=fit)
    errors = {
        "cells": float(len(filled)),
        "energy_in_sample": statistics.mean(abs(fit.energy_wh(*cell[:3]) / cell[3] - 1) for cell in filled),
        "energy_held_out_11_folds": statistics.mean(held_errors),
        "regret_mean": statistics.mean(table.regret().values()),
        "regret_worst_row": max(table.regret().values()),
        "regret_held_out": statistics.mean(held_regrets),
    }
    show("Table I", errors)
    dump = table.model_dump(mode="json")
    return dump | {"errors": rounded(errors)}


def regret(cells: TableCells, predicted: dict[int, float]) -> float:
    found = []
    for kind in {cell[0] for cell in cells}:
        row = [index for index, cell in enumerate(cells) if cell[0] == kind]
        chosen = min(row, key=lambda index: predicted[index])
        found.append(cells[chosen][3] / min(cells[index][3] for index in row) - 1)
    return statistics.mean(found)


# shared


def solve(
    start: dict[str, float],
    residuals: Callable[[dict[str, float]], Floats],
    loss_at: float | None = None,
    signed: Sequence[str] = (),
) -> dict[str, float]:
    """Least squares over named parameters, in their logarithms where they must stay positive."""
    names = list(start)

    def values(point: Floats) -> dict[str, float]:
        pairs = zip(names, point.tolist(), strict=True)
        return {name: value if name in signed else math.exp(value) for name, value in pairs}

    first = [start[name] if name in signed else math.log(start[name]) for name in names]
    found = least_squares(
        lambda point: residuals(values(point)),
        first,
        loss="linear" if loss_at is None else "soft_l1",
        f_scale=loss_at or 1.0,
        max_nfev=200,
    )
    return values(found.x)


def splits(count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(rows to fit, rows held out), the same every time."""
    everything = np.arange(count)
    found = []
    for seed in range(SPLITS):
        held = np.random.default_rng(seed).choice(count, HELD_OUT, replace=False)
        found.append((np.setdiff1d(everything, held), held))
    return found


def mean_error(predicted: Floats, measured: Floats) -> float:
    return float(np.nanmean(np.abs(predicted / measured - 1)))


def rounded(errors: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in errors.items()}


def show(title: str, errors: dict[str, float]) -> None:
    print(title)
    for name, value in errors.items():
        print(f"  {name:30s} {value:.0f}" if name == "cells" else f"  {name:30s} {value:7.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "profiles")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    fits = {
        "llama2": fit_llama2(read_splitwise(arguments.data / "splitwise_perf_model.csv")),
        "llama8b": fit_llama8b(read_h200(arguments.data / "h200_llama8b_default_clocks.json")),
        "table1": fit_table(read_table(arguments.data / "dynamollm_table1.csv")),
    }
    if arguments.write:
        path = ROOT / "control_plane" / "hardware" / "fits.json"
        path.write_text(json.dumps(fits, indent=1) + "\n")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
