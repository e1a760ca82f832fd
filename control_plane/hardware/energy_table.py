"""DynamoLLM's Table I: energy by request type, tensor parallelism and clock. Measured cells are exact; a fit speaks
for the clocks in between, and never for shapes that the paper found to break the SLO.

Its unit is ambiguous (instance power times one request's latency): use ratios, never sums over concurrent requests.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from control_plane.domain import REQUEST_TYPES, InputClass, OutputClass, RequestType, Shape

CLOCK_TOLERANCE_MHZ = 20
"""The table says 2.0 GHz where the GPU's highest clock is 1980 MHz."""


class TableFit(BaseModel):
    """E = (a(tp)·I·g(x) + d(tp)·O·g(x)·(1 + k·I)) / (1 - u), x = f / 1.2 GHz, g = w/x + 1 - w - v + v·x².

    a and d grow as powers of the TP; u is the utilisation that a fixed load of prompt and answer tokens means for a
    shape: the nearer to saturation, the longer a request takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefill: float
    prefill_growth: float
    decode: float
    decode_growth: float
    context: float
    inverse: float
    square: float
    inputs: Mapping[InputClass, float]
    outputs: Mapping[OutputClass, float]
    prompt_use: float
    answer_use: float
    use_clock: float

    def energy_wh(self, request_type: RequestType, tp: int, freq_mhz: float) -> float:
        x = freq_mhz / 1200.0
        prompt, answer = self.inputs[request_type.input], self.outputs[request_type.output]
        clock = self.inverse / x + 1.0 - self.inverse - self.square + self.square * x * x
        energy = self.prefill * (tp / 4) ** self.prefill_growth * prompt
        energy += self.decode * (tp / 4) ** self.decode_growth * answer * (1.0 + self.context * prompt)
        shares = prompt_share(request_type)
        use = (self.prompt_use * shares + self.answer_use * (1 - shares)) * 4 / tp / x**self.use_clock
        return float(energy * clock / max(0.05, 1.0 - use))


TYPICAL_INPUT_TOKENS = {InputClass.SHORT: 128.0, InputClass.MEDIUM: 600.0, InputClass.LONG: 2200.0}
TYPICAL_OUTPUT_TOKENS = {OutputClass.SHORT: 50.0, OutputClass.MEDIUM: 200.0, OutputClass.LONG: 450.0}


def prompt_share(request_type: RequestType) -> float:
    """Prompt tokens among all tokens of a type."""
    prompt = TYPICAL_INPUT_TOKENS[request_type.input]
    return prompt / (prompt + TYPICAL_OUTPUT_TOKENS[request_type.output])


class EnergyCell(NamedTuple):
    """Watt-hours and whether they were measured or come from the fit."""

    energy_wh: float
    origin: Literal["measured", "fitted"]


class EnergyTable(BaseModel):
    """The table's cells by type and TP, one value a clock, None where the SLO breaks; and the fit to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clocks_mhz: Sequence[int]
    cells: Mapping[str, Mapping[int, Sequence[float | None]]]
    fit: TableFit

    def energy(self, request_type: RequestType, shape: Shape) -> EnergyCell | None:
        """None where the SLO breaks: in a blank cell, and between clocks of which the lower one is blank. Raises
        ValueError outside the table: it does not extrapolate."""
        row = self.cells[str(request_type)].get(shape.tp)
        if row is None:
            raise ValueError(f"Table I has TP {sorted(self.cells[str(request_type)])}, not {shape.tp}")
        for clock_mhz, energy_wh in zip(self.clocks_mhz, row, strict=True):
            if abs(clock_mhz - shape.freq_mhz) <= CLOCK_TOLERANCE_MHZ:
                return None if energy_wh is None else EnergyCell(energy_wh, "measured")
        if not self.clocks_mhz[0] < shape.freq_mhz < self.clocks_mhz[-1]:
            raise ValueError(f"Table I has {self.clocks_mhz[0]}-{self.clocks_mhz[-1]} MHz, not {shape.freq_mhz}")
        below = max(index for index, clock in enumerate(self.clocks_mhz) if clock < shape.freq_mhz)
        if row[below] is None:
            return None
        return EnergyCell(self.fit.energy_wh(request_type, shape.tp, shape.freq_mhz), "fitted")

    def measured(self, request_type: RequestType) -> Sequence[tuple[int, int, EnergyCell]]:
        """(TP, clock, cell) of every filled cell of a type."""
        return [
            (tp, clock, EnergyCell(energy_wh, "measured"))
            for tp, row in sorted(self.cells[str(request_type)].items())
            for clock, energy_wh in zip(self.clocks_mhz, row, strict=True)
            if energy_wh is not None
        ]

    def regret(self) -> Mapping[RequestType, float]:
        """By type: how much more than the best filled cell the one costs that the fit would choose."""
        regrets = {}
        for request_type in REQUEST_TYPES:
            cells = self.measured(request_type)
            _, _, chosen = min(cells, key=lambda cell: self.fit.energy_wh(request_type, cell[0], cell[1]))
            best = min(cell.energy_wh for _, _, cell in cells)
            regrets[request_type] = chosen.energy_wh / best - 1.0
        return regrets
