"""Writing a page: plotly's script lies beside it, once for all pages of a folder, so that each stays small and opens
without a network. A page that goes into a pipe, a device or standard output carries the script itself."""

from pathlib import Path

from plotly.offline import get_plotlyjs

from wattray.output_files import STDOUT, write_text

SCRIPT = "plotly.min.js"
_TAG = f'<script charset="utf-8" src="{SCRIPT}"></script>'
"""What plotly writes for ``include_plotlyjs="directory"``."""


def write_page(path: Path, page: str) -> None:
    """Raises WattrayError where the page or the script cannot be written."""
    script = get_plotlyjs()
    if path == STDOUT or (path.exists() and not path.is_file()):
        write_text(path, page.replace(_TAG, f"<script>{script}</script>", 1))
        return
    beside = (path.resolve() if path.is_symlink() else path).with_name(SCRIPT)
    if not beside.is_file() or beside.stat().st_size != len(script.encode()):
        write_text(beside, script)
    write_text(path, page)
