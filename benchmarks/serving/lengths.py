"""How well output lengths are predicted on the two Azure 2023 hours together, in order of time.

    python benchmarks/serving/lengths.py TRACES [--json FILE]

``TRACES`` is a folder with azure2023_conv.csv and azure2023_code.csv. The first half of the requests teaches, the
second is predicted one by one, each before it is learnt from. Printed: the share whose class (under 100 tokens, 100 to
349, above) is told right, the mean absolute error of the median and of the mean, and how many outputs stayed at or
below the upper bound, nominal 90 %. Frozen: the trees of the first half alone; online: refitted as they fall due (at
once here). Beside them the table by input class, which is the default, and the most frequent class.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import OutputClass
from control_plane.serving.length_predictor import LengthTable
from control_plane.serving.length_quantiles import LengthPredictor, Requester
from control_plane.simulation.trace import Trace
from control_plane.simulation.traces import azure_trace

SERVICES = (Requester(app="conversation"), Requester(app="code"))
MAX_TOKENS = 4096
Said = tuple[float, float, float, float]
"""Mean, median, upper bound and class."""
_KINDS = tuple(OutputClass)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = mixed_hours(asked.traces)
    half = len(rows) // 2
    actual = rows[half:, 2]
    results = {}
    print("| predictor | class right | MAE of the median | MAE of the mean | below the upper bound | µs a look |")
    print("|---|---|---|---|---|---|")
    for name, walk in (("trees, online", _online), ("trees, frozen", _frozen), ("table by input class", _table)):
        said, look_s = walk(rows, half)
        mean, median, upper, kinds = np.array(said).T
        results[name] = {
            "class_accuracy": float((kinds == classes(actual)).mean()),
            "median_mae": float(np.abs(median - actual).mean()),
            "mean_mae": float(np.abs(mean - actual).mean()),
            "coverage": float((actual <= upper).mean()),
            "look_s": look_s,
        }
        print(
            f"| {name} | {results[name]['class_accuracy']:.1%} | {results[name]['median_mae']:.1f} | "
            f"{results[name]['mean_mae']:.1f} | {results[name]['coverage']:.1%} | {look_s * 1e6:.1f} |"
        )
        for service, _ in enumerate(SERVICES):
            mine = rows[half:, 0] == service
            right = (kinds == classes(actual))[mine].mean()
            print(
                f"| … {SERVICES[service].app}, {mine.sum():,} requests | {right:.1%} | "
                f"{np.abs(median - actual)[mine].mean():.1f} | {np.abs(mean - actual)[mine].mean():.1f} | "
                f"{(actual <= upper)[mine].mean():.1%} | |"
            )
    majority = np.bincount(classes(rows[:half, 2])).argmax()
    print(f"| the most frequent class of the first half | {(classes(actual) == majority).mean():.1%} | | | | |")
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1))


def mixed_hours(folder: Path) -> NDArray[np.int64]:
    """[requests, (service, input tokens, output tokens)] in order of the time of day: the hours began 77 s apart."""
    parts = []
    for service, name in enumerate(("conv", "code")):
        with (folder / f"azure2023_{name}.csv").open(encoding="utf-8") as lines:
            trace: Trace = azure_trace(lines)
        at_s = trace.arrival_ps / 1e12 + (0.0, 77.3)[service]
        parts.append(np.column_stack([at_s, np.full(len(trace), service), trace.input_tokens, trace.output_tokens]))
    rows = np.concatenate(parts)
    return rows[np.argsort(rows[:, 0], kind="stable"), 1:].astype(np.int64)


def classes(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    return (tokens >= 100).astype(np.int64) + (tokens >= 350)


def _taught(rows: NDArray[np.int64], half: int) -> LengthPredictor:
    predictor = LengthPredictor()
    for service, inputs, outputs in rows[:half].tolist():
        predictor.learn(SERVICES[service], inputs, outputs)
    fit = predictor.fit_due()
    assert fit is not None
    predictor.adopt(fit.solve())
    return predictor


def _frozen(rows: NDArray[np.int64], half: int) -> tuple[list[Said], float]:
    predictor = _taught(rows, half)
    return _asked(rows, half, predictor, lambda: None)


def _online(rows: NDArray[np.int64], half: int) -> tuple[list[Said], float]:
    predictor = _taught(rows, half)

    def refit() -> None:
        fit = predictor.fit_due()
        if fit is not None:
            predictor.adopt(fit.solve())

    return _asked(rows, half, predictor, refit)


def _asked(
    rows: NDArray[np.int64], half: int, predictor: LengthPredictor, then: Callable[[], None]
) -> tuple[list[Said], float]:
    said, spent_s = [], 0.0
    for service, inputs, outputs in rows[half:].tolist():
        began_s = time.perf_counter()
        told = predictor.predict(SERVICES[service], inputs, MAX_TOKENS)
        spent_s += time.perf_counter() - began_s
        said.append((told.expected, told.median, told.upper, _KINDS.index(told.kind)))
        predictor.learn(SERVICES[service], inputs, outputs)
        then()
    return said, spent_s / len(said)


def _table(rows: NDArray[np.int64], half: int) -> tuple[list[Said], float]:
    table, said, spent_s = LengthTable(), [], 0.0
    for at, (_, inputs, outputs) in enumerate(rows.tolist()):
        if at >= half:
            began_s = time.perf_counter()
            told = table.expected_tokens(inputs, MAX_TOKENS)
            spent_s += time.perf_counter() - began_s
            said.append((told, told, float("nan"), _KINDS.index(OutputClass.of(round(told)))))
        table.learn(inputs, outputs)
    return said, spent_s / len(said)


if __name__ == "__main__":
    main()
