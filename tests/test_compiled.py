"""Machine code without a place to cache it."""

import os
import subprocess
import sys
from pathlib import Path

import control_plane.compiled


def test_where_no_cache_folder_can_be_written_functions_are_compiled_anew(tmp_path: Path) -> None:
    """A file stands where each of numba's cache folders would be made: this holds for root too."""
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    (tmp_path / "door.py").write_text(Path(control_plane.compiled.__file__).read_text())
    (tmp_path / "user.py").write_text(
        "from door import compiled\n\n@compiled\ndef twice(x: int) -> int:\n    return 2 * x\n\nprint(twice(21))\n"
    )
    nowhere = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")} | nowhere
    ran = subprocess.run(
        [sys.executable, "user.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "42"), ran.stderr
