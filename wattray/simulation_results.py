"""Results of a simulation as JSON and as a table, and the profile a command names."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from control_plane.hardware.machine_profile import MachineProfile
from control_plane.settings import Settings, SettingsError, parse_settings
from control_plane.simulation.comparison import Answer
from control_plane.simulation.policies import SINGLE_POOL
from control_plane.simulation.trace import Trace
from control_plane.simulation.trace_reader import LeftOut
from control_plane.text_edges import number


def as_json(answer: Answer, names: tuple[str, ...], requests: Trace) -> dict[str, Any]:
    """The results as written by --json; energies in joules, times in seconds."""
    effort = answer.effort
    return {
        "policies": {
            name: {
                **asdict(answer.scores[name]),
                "energy_saved_ratio": answer.saved_ratio(name),
                "slo_held": answer.holds(name),
                **({"fleet": answer.fleets[name]} if name in answer.fleets else {}),
            }
            for name in shown(answer, names)
        },
        "simulator": {
            "requests": len(requests),
            "cpu_s": effort.cpu_s,
            "policy_cpu_s": effort.policy_cpu_s,
            "sizing_cpu_s": effort.sizing_cpu_s,
            "requests_per_cpu_s": len(requests) / effort.cpu_s if effort.cpu_s > 0 else None,
        },
        "bound_energy_j": answer.bound.energy_j,
        "single_pool": {"replicas": answer.baseline_replicas, "sizing_runs": answer.sizing_runs},
        "attainment": answer.attainment,
        "gpus": answer.gpus,
        "idle_gpus_billed": answer.idle_gpus,
    }


def input_json(files: Sequence[str], left_out: LeftOut) -> dict[str, Any]:
    """Which files were read, and what of them was not."""
    return {
        "files": list(files),
        "failed_requests": len(left_out.failed),
        "bad_rows": left_out.bad_rows,
        "bad_rows_listed": left_out.bad,
    }


def shown(answer: Answer, names: tuple[str, ...]) -> list[str]:
    return [*dict.fromkeys((*names, *answer.scores))]


DEFAULT_PROFILE = Settings().profile


def named_profile(name: str | None, given: Mapping[str, Any] | None = None) -> MachineProfile:
    """The profile that the command line names, else that of the settings file ``given``, else the default: an embedded
    one by name, or a user's own from a file. Raises ProfileError with the known names."""
    from control_plane.hardware.profiles import load_profile
    from wattray.profile_files import profile_named

    if name is None and given is not None and "profile" in given:
        return load_profile(str(given["profile"]), source="--config: profile")
    return profile_named(name or DEFAULT_PROFILE)


LIMITS = {"ttft": ("ttft_short_s", "ttft_medium_s", "ttft_long_s"), "tbt": ("tbt_s",), "tpot": ("tbt_s",)}
"""What `--slo` may name, beside the settings' own names with or without their unit."""


def settings_for(machine: MachineProfile, limits: str | None, given: Mapping[str, Any] | None = None) -> Settings:
    """Those of the settings file ``given``, which was read without fault. The SLO is the profile's, over it the file's,
    over that the limits of `--slo`. Raises SettingsError."""
    slo, given = machine.slo, given or {}
    values = {
        "ttft_short_s": slo.ttft_short_s,
        "ttft_medium_s": slo.ttft_medium_s,
        "ttft_long_s": slo.ttft_long_s,
        "tbt_s": slo.tbt_s,
        **given.get("slo", {}),
    }
    for part in (limits or "").split(","):
        if not part.strip():
            continue
        name, _, text = (word.strip() for word in part.partition("="))
        fields = LIMITS.get(name, tuple(field for field in values if field in (name, f"{name}_s")))
        limit = number(text)
        if not fields or limit is None or limit <= 0:
            known = ", ".join(["ttft", "tbt", *(field.removesuffix("_s") for field in values)])
            raise SettingsError(f"--slo {part.strip()!r}: expected NAME=SECONDS with NAME one of {known}")
        values.update(dict.fromkeys(fields, limit))
    serve = given.get("serve", {})
    overhead_s = serve.get("overhead_s", Settings().serve.overhead_s)
    tightest_s = min(values["ttft_short_s"], values["ttft_medium_s"], values["ttft_long_s"])
    # Plans leave room for network and event loops; of a very tight limit never more than half.
    serve = {**serve, "overhead_s": min(overhead_s, tightest_s / 2)}
    return parse_settings({**given, "slo": values, "serve": serve}, "--slo")


def checked_attainment(share: float) -> float:
    """Raises SettingsError outside (0, 1]."""
    if not 0 < share <= 1:
        raise SettingsError(f"--attainment {share}: a share above 0 and at most 1, such as 0.99")
    return share


def result_table(answer: Answer, names: tuple[str, ...], requests: Trace) -> Table:
    """Fits 80 columns; `--json` and the report say more."""
    hours = requests.duration_s / 3600
    title = f"{len(requests):,} requests in {hours:.2f} h"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("policy", overflow="fold")
    for column in RESULT_HEAD[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row, holds in result_rows(answer, names):
        table.add_row(*map(Text, row), style=None if holds else "red")
    baseline_j = answer.scores[SINGLE_POOL].energy_j
    bound_j = answer.bound.energy_j
    table.add_row("bound", f"{bound_j / 3.6e6:,.2f}", _ratio(1 - bound_j / baseline_j), style="dim")
    return table


RESULT_HEAD = ("policy", "kWh", "saved", "SLO\nheld", "lost", "TTFT\np99 s", "TBT\np99 ms", "GPU h")


def result_rows(answer: Answer, names: tuple[str, ...]) -> list[tuple[tuple[str, ...], bool]]:
    """The cells of every policy's line, and whether it holds the SLO: only then does it show a saving."""
    rows: list[tuple[tuple[str, ...], bool]] = []
    for name in shown(answer, names):
        line = answer.scores[name]
        cells = (
            name,
            f"{line.energy_j / 3.6e6:,.2f}",
            _ratio(answer.saved_ratio(name)) if answer.holds(name) else "SLO missed",
            f"{line.slo_attainment:.2%}",
            f"{line.lost:,}",
            f"{line.ttft_p99_s:,.2f}",
            f"{line.tbt_p99_s * 1000:,.0f}",
            f"{line.gpu_hours:,.1f}",
        )
        rows.append((cells, answer.holds(name)))
    return rows


def _ratio(saved: float) -> str:
    return f"{saved:.1%}"
