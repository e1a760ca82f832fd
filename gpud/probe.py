"""``python -m gpud.probe SOCKET``: whether gpud answers, for a supervisor. A driver that is missing is no failure of
gpud, so it counts as alive then too."""

import sys
from pathlib import Path

from actors.gpu.gpud_client import GpudClient, GpudError


def main(socket: str) -> int:
    """Exit code 0 where it answers within two seconds."""
    try:
        state = GpudClient(Path(socket), timeout_s=2.0).read(max_age_s=3600.0)["gpud"]
    except GpudError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{state['state']}: {state['why']}" if state["why"] else state["state"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
