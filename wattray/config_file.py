"""The settings file of a command: YAML, read and checked in one place."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattray.errors import WattrayError

if TYPE_CHECKING:
    from control_plane.settings import Settings

MOST_BYTES = 1024 * 1024


def read_config(path: Path | None) -> dict[str, Any]:
    """The settings in the file; a section that is there but empty means its defaults. Raises WattrayError, in one line
    with the file and, where it is known, the line of the fault."""
    if path is None:
        return {}
    from control_plane.text_edges import decoded, parse_yaml

    source = f"--config {path}"
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise WattrayError(f"{source}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise WattrayError(f"{source}: more than {MOST_BYTES:,} bytes; this is no settings file")
    values, _ = parse_yaml(decoded(content, source, _ConfigError), source, _ConfigError)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise WattrayError(f"{source}: expected a mapping of settings, got {type(values).__name__}")
    named = [name for name in values if not isinstance(name, str)]
    if named:
        raise WattrayError(f"{source}: {named[0]!r} is no name of a setting")
    return _with_profile_file({name: value for name, value in values.items() if value is not None}, path.parent)


def _with_profile_file(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with the text of a profile file in place of its path, which counts from the settings file's folder.
    The file's own limits hold unless the settings have some."""
    named = values.get("profile")
    if not isinstance(named, str) or not named.endswith((".json", ".yaml", ".yml")):
        return values
    from control_plane.hardware.profile_file import ProfileError, parse_profile
    from wattray.profile_files import read_text

    file = folder / named
    try:
        text = read_text(file)
        slo = parse_profile(text, f"profile: {file}").slo
    except (OSError, ProfileError) as error:
        told = f"profile: {file}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise WattrayError(told) from None
    limits = {
        "ttft_short_s": slo.ttft_short_s,
        "ttft_medium_s": slo.ttft_medium_s,
        "ttft_long_s": slo.ttft_long_s,
        "tbt_s": slo.tbt_s,
    }
    return {"slo": limits, **values, "profile": text}


def read_settings(
    path: Path | None, port: int | None = None, engine: str | None = None, gpus: int | None = None
) -> "Settings":
    """All settings, the file's and the command line's. Raises WattrayError and SettingsError."""
    from control_plane.settings import parse_settings

    values = with_port(read_config(path), port)
    values = _with(_with(values, "serve", "engine", engine), "gpu", "count", gpus)
    return parse_settings(values, str(path or "settings"))


def with_port(values: dict[str, Any], port: int | None) -> dict[str, Any]:
    """The settings with the router's port from the command line."""
    return _with(values, "serve", "port", port)


def _with(values: dict[str, Any], section: str, field: str, value: object) -> dict[str, Any]:
    """The settings with one field from the command line, where it is given there."""
    if value is None:
        return values
    fields = values.get(section, {})
    if not isinstance(fields, dict):
        raise WattrayError(f"{section}: expected a mapping of settings, got {fields!r:.60}")
    return {**values, section: {**fields, field: value}}


class _ConfigError(WattrayError, ValueError):
    """A fault of the file, as the readers raise it."""
