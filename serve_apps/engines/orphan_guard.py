"""Ends what a process has started once that process is gone, however it ended: vLLM's engine process outlives a parent
that is killed, and keeps the GPU's memory from the replica that follows.

A process of its own, run as ``python -m serve_apps.engines.orphan_guard PID`` by the process with that PID. It looks
whose child it is: a pipe would stay open in a forked child of the parent.
"""

import os
import subprocess
import sys
import time

import psutil

LOOK_S = 1.0


class OrphanGuard:
    """Guards all that this process has started and will start, processes in sessions of their own included."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__, str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end(self) -> None:
        """What was started is left alone."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    parent_pid, own = int(sys.argv[1]), psutil.Process()
    known: set[psutil.Process] = set()
    while os.getppid() == parent_pid:
        try:
            known |= set(psutil.Process(parent_pid).children(recursive=True)) - {own}
        except psutil.NoSuchProcess:
            break
        known = {process for process in known if process.is_running()}
        time.sleep(LOOK_S)
    for process in known:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    main()
