"""Commands that live in modules of their own; a module is imported only when its command is called or listed."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import typer
import typer.core
import typer.main

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "simulate": "wattray.cli_simulate:simulate_command",
        "bound": "wattray.cli_simulate:bound_command",
        "allocate": "wattray.cli_allocate:allocate_command",
        "frontier": "wattray.cli_frontier:frontier_command",
        "profile": "wattray.cli_profile:profile_app",
        "gpu": "wattray.cli_gpu:gpu_app",
        "gpud": "wattray.cli_gpud:gpud_command",
        "doctor": "wattray.cli_gpud:doctor_command",
    }
)
"""By name: a module and the function or the group of commands in it."""
PASSED_THROUGH = frozenset({"gpud"})
"""They read their options, `--help` too, themselves."""


class LazyGroup(typer.core.TyperGroup):
    """Knows the names of ``COMMANDS`` and imports what is behind them when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.commands[cmd_name] = _loaded(cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A name that is none is compared with those of all commands, so they are loaded then."""
        if args and self.get_command(ctx, args[0]) is None:
            for name in COMMANDS:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


def _loaded(name: str) -> Any:
    module, _, attribute = COMMANDS[name].partition(":")
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
