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


def drawing(cells: Mapping[tuple[str, int], Cell], constants: Mapping[str, tuple[float, float]]) -> str:
    """Both shapes over the clock, measured as dots and modelled as lines, relative to the highest clock measured."""
    width, height, left, top = 420, 260, 50, 30
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {2 * width + 40} {height + 130}' "
        "font-family='sans-serif' font-size='11'>",
        "<rect width='100%' height='100%' fill='white'/>",
    ]
    for panel, title in enumerate(("tokens a second", "power")):
        x0 = panel * (width + 20) + left

        def x(mhz: float, start: float = x0) -> float:
            return start + (mhz - 1000) / 1850 * (width - left - 10)

        def y(share: float) -> float:
            return top + (1.08 - share) / 0.68 * height

        parts.append(f"<text x='{x0}' y='{top - 12}' font-size='13'>{title}, relative to the highest clock</text>")
        for share in (0.4, 0.6, 0.8, 1.0):
            parts.append(f"<line x1='{x0}' x2='{x(2850)}' y1='{y(share)}' y2='{y(share)}' stroke='#ddd'/>")
            parts.append(f"<text x='{x0 - 28}' y='{y(share) + 4}'>{share:.1f}</text>")
        for mhz in (1000, 1500, 2000, 2500):
            parts.append(f"<text x='{x(mhz) - 12}' y='{top + height + 16}'>{mhz}</text>")
        for colour, ((model, streams), cell) in zip(colours, cells.items(), strict=True):
            measured = cell[1 + panel]
            lines = modelled(cell, *constants[model])[panel]
            base = lines[-1]
            dots = zip(cell[0].tolist(), (measured / base).tolist(), strict=True)
            parts += [f"<circle cx='{x(mhz):.1f}' cy='{y(value):.1f}' r='3.5' fill='{colour}'/>" for mhz, value in dots]
            path = " ".join(f"{x(mhz):.1f},{y(value):.1f}" for mhz, value in zip(cell[0], lines / base, strict=True))
            parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
            number = list(cells).index((model, streams))
            if panel == 0:
                label = f"{model}, {streams} stream{'s' if streams > 1 else ''}"
                line_y = top + height + 36 + 15 * number
                parts.append(f"<circle cx='{left}' cy='{line_y - 4}' r='3.5' fill='{colour}'/>")
                parts.append(f"<text x='{left + 10}' y='{line_y}'>{label}</text>")
    parts.append(f"<text x='{width + left}' y='{top + height + 36}'>dots: measured; lines: the model; MHz</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"


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
        arguments.svg.write_text(drawing(cells, constants))


if __name__ == "__main__":
    main()
