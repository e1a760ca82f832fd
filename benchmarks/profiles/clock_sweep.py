"""What a lower clock costs and saves: our scaling against the one public set with the SM clock as a variable.

    python benchmarks/profiles/clock_sweep.py [--data FILE] [--svg docs/clock_sweep.svg]

vLLM on an RTX PRO 6000 whose power cap was lowered step by step (28 cells, two models, 1 and 32 streams). Times: a
share of an iteration, one constant per model, goes as 1/f, the rest as memory-bound work (`memory_slowdown`). Power
above idle: a share, one constant per model, follows f·V², the rest stays. Levels are each cell's own: shapes are
compared.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from control_plane.hardware.energy_profile import memory_slowdown  # noqa: E402
from control_plane.hardware.gpu_model import H100_SXM  # noqa: E402
from control_plane.hardware.share_fit import CLOCKED_SHARE  # noqa: E402

Floats = NDArray[np.float64]
TOP_MHZ = 2780.0
"""The highest clock seen."""
IDLE_W = 80.0
"""With a context at the highest clock: not in the set, taken from the GPU's class."""

Cell = tuple[Floats, Floats, Floats]
"""Clocks, tokens a second, watts."""


def read(path: Path) -> Mapping[tuple[str, int], Cell]:
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = defaultdict(list)
    with path.open() as text:
        for row in csv.DictReader(text):
            key = row["model"], int(row["concurrency"])
            found[key].append((float(row["sm_mhz"]), float(row["tokens_per_s"]), float(row["power_w"])))
    cells = {}
    for key, rows in found.items():
        mhz, rate, watts = np.array(sorted(rows)).T
        cells[key] = mhz, rate, watts
    return cells


def speeds(mhz: Floats, products: float) -> Floats:
    """Tokens a second relative to the highest clock."""
    ratio = TOP_MHZ / mhz
    return 1 / (products * ratio + (1 - products) * memory_slowdown(ratio))


def voltage_scale(mhz: Floats) -> Floats:
    """f·V² with the H100's knee, relative to the highest clock."""
    knee = H100_SXM.knee_mhz / H100_SXM.max_freq_mhz * TOP_MHZ
    low = H100_SXM.knee_voltage_ratio
    voltage = low + (1 - low) * np.clip((mhz - knee) / (TOP_MHZ - knee), 0, None)
    result: Floats = mhz / TOP_MHZ * voltage**2
    return result


def powers(mhz: Floats, clocked: float) -> Floats:
    """Power above idle relative to the highest clock."""
    return 1 - clocked + clocked * voltage_scale(mhz)


def levelled(shape: Floats, measured: Floats) -> Floats:
    """The shape at the level that is nearest to the measurements."""
    return shape * float(np.exp(np.mean(np.log(measured / shape))))


def modelled(cell: Cell, products: float, clocked: float) -> tuple[Floats, Floats]:
    mhz, rate, watts = cell
    return levelled(speeds(mhz, products), rate), IDLE_W + levelled(powers(mhz, clocked), watts - IDLE_W)


def fitted(cells: Sequence[Cell]) -> tuple[float, float]:
    """One model's two constants, over all its cells."""

    def rate_error(products: float) -> float:
        return float(np.mean([np.mean((modelled(cell, products, 0.5)[0] / cell[1] - 1) ** 2) for cell in cells]))

    def power_error(clocked: float) -> float:
        return float(np.mean([np.mean((modelled(cell, 0.1, clocked)[1] / cell[2] - 1) ** 2) for cell in cells]))

    found = [minimize_scalar(error, bounds=(0.0, 1.0), method="bounded").x for error in (rate_error, power_error)]
    return float(found[0]), float(found[1])


def errors(cells: Sequence[Cell], products: float, clocked: float) -> tuple[float, float]:
    """Mean errors of throughput and of power."""
    rate, power = [], []
    for cell in cells:
        rates, watts = modelled(cell, products, clocked)
        rate.append(np.abs(rates / cell[1] - 1))
        power.append(np.abs(watts / cell[2] - 1))
    return float(np.concatenate(rate).mean()), float(np.concatenate(power).mean())


def drawing(cells: Mapping[tuple[str, int], Cell], constants: Mapping[str, tuple[float, float]]) -> Figure:
    """Both shapes over the clock, measured as dots and modelled as lines, relative to the highest clock measured."""
    figure = Figure(figsize=(8.8, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (ax, title) in enumerate(zip(panels, ("tokens a second", "power"), strict=True)):
        ax.set_title(f"{title}, relative to the highest clock", loc="left", fontsize="medium")
        ax.set_xlabel("SM clock [MHz]")
        ax.grid(axis="y")
        for at, ((model, streams), cell) in enumerate(cells.items()):
            lines = modelled(cell, *constants[model])[panel]
            label = f"{model}, {streams} stream{'s' if streams > 1 else ''}"
            ax.plot(cell[0], cell[1 + panel] / lines[-1], "o", markersize=4, color=f"C{at}", label=label)
            ax.plot(cell[0], lines / lines[-1], color=f"C{at}")
    panels[0].set_ylim(bottom=0.0)
    handles, labels = panels[0].get_legend_handles_labels()
    title = "dots: measured; lines: the model"
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, title=title)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = ROOT.parent / "shared" / "data" / "power"
    parser.add_argument("--data", type=Path, default=folder / "vllm_power_cap_sweep_rtx6000.csv")
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    cells = read(arguments.data)
    constants = {}
    for model in sorted({model for model, _ in cells}):
        own = [cell for (name, _), cell in cells.items() if name == model]
        constants[model] = fitted(own)
        rate, power = errors(own, *constants[model])
        fixed = errors(own, constants[model][0], CLOCKED_SHARE)[1]
        print(
            f"{model}: products {constants[model][0]:.2f} of the time, throughput {rate:.1%} off in the mean; "
            f"{constants[model][1]:.2f} of the power follows f·V², power {power:.1%} off, {fixed:.1%} with the "
            f"embedded {CLOCKED_SHARE}"
        )
    everything = [errors([cell], *constants[model]) for (model, _), cell in cells.items()]
    print(f"all 28 cells: throughput {np.mean([one[0] for one in everything]):.1%}, ", end="")
    print(f"power {np.mean([one[1] for one in everything]):.1%} off in the mean")
    if arguments.svg:
        drawing(cells, constants).savefig(arguments.svg)


if __name__ == "__main__":
    main()
