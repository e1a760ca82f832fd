"""A stage profile from where its user keeps it: a CSV, a JSON list of Zeus, or the folder of a Zeus server's dumps."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from control_plane.text_edges import decoded

if TYPE_CHECKING:
    from control_plane.training.profile import Profile

_DUMP = re.compile(r"([0-9]+)\.prof\.json\Z")


def read_profile_file(path: Path) -> "Profile":
    """Raises ValueError, which names file and field, where the profile cannot be read or trusted."""
    from control_plane.training.profile import read_profile
    from control_plane.training.zeus_files import read_dumps, read_offline

    if path.is_dir() or _DUMP.match(path.name):
        dumps = sorted(path.glob("*.prof.json")) if path.is_dir() else [path]
        dumps = [dump for dump in dumps if _DUMP.match(dump.name)]
        if not dumps:
            raise ValueError(f"{path}: the folder holds no N.prof.json of a Zeus server")
        ranks = dumps[0].with_name("ranks.json")
        pairs = ((dump, dump.with_name(dump.name.replace(".prof.json", ".sched.json"))) for dump in dumps)
        texts = ((read_text(dump), str(dump), read_text(schedule), str(schedule)) for dump, schedule in pairs)
        return read_dumps(texts, read_text(ranks), str(ranks))
    if path.suffix == ".json":
        return read_offline(read_text(path), str(path))
    return read_profile(read_text(path))


def read_text(path: Path) -> str:
    """Raises ValueError where the file cannot be read or is no UTF-8 text."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return decoded(content, str(path), ValueError)
