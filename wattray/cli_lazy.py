"""Commands that live in modules of their own; a module is imported only when its command is called or listed."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import typer
import typer.core
import typer.main


class Lazy(NamedTuple):
    """A command that is not imported yet: a module and the function or the group of commands in it, and the line that
    a list of commands shows (the first sentence of its own help)."""

    place: str
    told: str


COMMANDS: Mapping[str, Lazy] = MappingProxyType(
    {
        "simulate": Lazy(
            "wattray.cli_simulate:simulate_command",
            "Play a trace against policies in virtual time and compare energy and SLO with the sized static baseline.",
        ),
        "bound": Lazy(
            "wattray.cli_simulate:bound_command",
            "The least energy any policy could spend on a trace and hold the SLO for 99 % of it.",
        ),
        "forecast": Lazy(
            "wattray.cli_forecast:forecast_command",
            "Forecast the load after a trace, or with --backtest show how well it would have been forecast throughout.",
        ),
        "allocate": Lazy(
            "wattray.cli_allocate:allocate_command",
            "Allocate GPUs, tensor parallelism and clocks to pools at the least power that holds the SLO.",
        ),
        "replay": Lazy(
            "wattray.cli_replay:replay_command",
            "Send a trace's requests to an OpenAI endpoint as they came, and measure what a client sees.",
        ),
        "train": Lazy(
            "wattray.cli_train:train_command",
            "Train a pipeline-parallel model under an energy plan, and once more with every clock at its highest.",
        ),
        "straggler": Lazy(
            "wattray.cli_straggler:straggler_command",
            "Announce a slow pipeline: the job's other pipelines slow down to its pace and no further.",
        ),
        "usage": Lazy(
            "wattray.cli_usage:usage_command",
            "Joules, tokens, joules per token and cost by tenant: of a simulated run, or of what is up.",
        ),
        "frontier": Lazy(
            "wattray.cli_frontier:frontier_command",
            "Trace the time–energy frontier of one training iteration and plan its clocks.",
        ),
        "profile": Lazy("wattray.cli_profile:profile_app", "Energy profiles: what a replica draws, carries and takes."),
        "gpu": Lazy("wattray.cli_gpu:gpu_app", "This node's GPUs: readings, and clocks by hand."),
        "gpud": Lazy(
            "wattray.cli_gpud:gpud_command", "The only writer of clocks on this node, as a process of its own."
        ),
        "doctor": Lazy(
            "wattray.cli_gpud:doctor_command", "What stands in the way of reading and setting GPUs, and how to mend it."
        ),
    }
)
PASSED_THROUGH = frozenset({"gpud"})
"""They read their options, `--help` too, themselves."""


class LazyGroup(typer.core.TyperGroup):
    """Knows the names of ``COMMANDS`` and imports what is behind one when it is called; a list of commands needs no
    import."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            return _listed(cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands.setdefault(args[0], _loaded(args[0]))
        elif args and args[0] not in self.commands:
            # A name that is none is compared with all names.
            self.commands = {**{name: _listed(name) for name in COMMANDS}, **self.commands}
        return super().resolve_command(ctx, args)


def _listed(name: str) -> Any:
    return typer.core.TyperCommand(name, help=COMMANDS[name].told)


def _loaded(name: str) -> Any:
    module, _, attribute = COMMANDS[name].place.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command: Any = typer.main.get_command(found)
    else:
        alone = typer.Typer(add_completion=False)
        given = {"ignore_unknown_options": True, "allow_extra_args": True}
        passed: dict[str, Any] = {"context_settings": given, "add_help_option": False} if name in PASSED_THROUGH else {}
        alone.command(name, **passed)(found)
        command = typer.main.get_command(alone)
    command.name = name
    return command
