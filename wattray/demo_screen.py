"""What a person sees while the demo runs: a progress bar that always moves, and a scoreboard at the end."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from wattray.load_generator import Progress as Sending
from wattray.report.moments import Moment

PLAIN_EVERY_S = 10.0
"""Without a terminal: one line this often."""


class DemoScreen:
    """A live bar on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("wattray demo", total=None, detail="")
        self._printed_s = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        if self._live:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A new stage begins."""
        self._console.print(f"· {text}", highlight=False)
        self._bar.update(self._task, description=text.split(" at http")[0], detail="")

    def watch(self, sending: Sending, moment: Moment | None) -> None:
        detail = f"{sending.completed}/{sending.total} done"
        if sending.failed:
            detail += f", {sending.failed} FAILED"
        if moment is not None:
            replicas = sum(moment.ready.values())
            clocks = "/".join(str(mhz) for mhz in moment.clocks_mhz.values()) or "full"
            detail += f" · {moment.power_w / 1000:.1f} kW · {replicas} replicas · {clocks} MHz"
        self._bar.update(self._task, total=sending.total, completed=sending.completed, detail=detail)
        if not self._live and time.monotonic() - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = time.monotonic()
            self._console.print(detail, highlight=False)

    def scoreboard(self, report: dict[str, Any], out: Path) -> None:
        serving = report["serving"]
        table = Table(title="wattray demo (simulated GPUs, real requests)", show_header=False)
        saved = serving["energy_saved_ratio"]
        table.add_row("serving energy, idle GPUs too", f"{serving['energy_j'] / 1000:.0f} kJ")
        table.add_row(f"baseline: {serving['baseline']}", f"{serving['baseline_energy_j'] / 1000:.0f} kJ")
        table.add_row("saved", f"[green]{saved:.1%}[/]")
        table.add_row("requests completed", f"{serving['requests_completed']} of {serving['requests_sent']}")
        table.add_row("SLO attainment, client's clock", f"{serving['slo_attainment']:.2%}")
        ttft = f"{serving['ttft_p50_s'] * 1000:.0f} / {serving['ttft_p99_s'] * 1000:.0f} ms"
        table.add_row("TTFT p50 / p99", ttft)
        table.add_row("decisions", str(len(serving["decisions"])))
        if "training" in report:
            self._training(table, report["training"])
        self._console.print(table)
        for decision in serving["decisions"][-5:]:
            line = f"  {decision['at_s']:5.0f} s  {decision['action']}: {decision['why']}"
            self._console.print(line, highlight=False)
        self._console.print(f"report: {out / 'report.html'}", highlight=False)

    @staticmethod
    def _training(table: Table, training: dict[str, Any]) -> None:
        against = f"{training['energy_j']:.0f} J against {training['baseline_energy_j']:.0f} J at full clock"
        table.add_row("training energy", f"{against}, [green]{training['energy_saved_ratio']:.1%}[/] saved")
        table.add_row("training iteration time over full clock's", f"{training['slowdown_ratio']:.4f}")
        table.add_row("stragglers handled", str(training["stragglers_handled"]))
