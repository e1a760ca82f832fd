"""Profiles and measurements as files on disk."""

from pathlib import Path

from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_file import ProfileError, parse_profile
from control_plane.hardware.profiles import PROFILE_NAMES, load_profile
from control_plane.text_edges import decoded

MOST_BYTES = 256 * 1024 * 1024
"""Of a file of measurements."""


def profile_named(name_or_file: str) -> MachineProfile:
    """An embedded profile, or one from a file. Raises ProfileError."""
    path = Path(name_or_file)
    if name_or_file in PROFILE_NAMES or not path.is_file():
        return load_profile(name_or_file)
    return parse_profile(read_text(path), str(path))


def read_text(path: Path) -> str:
    """A small text file; raises ProfileError."""
    if path.stat().st_size > MOST_BYTES:
        raise ProfileError(f"{path}: {path.stat().st_size:,} bytes; a profile has at most {MOST_BYTES:,}")
    return decoded(path.read_bytes(), str(path), ProfileError)
