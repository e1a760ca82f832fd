"""A killed parent's children end with it, those in sessions of their own included; a guard that has ended ends none."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

PARENT = """
import multiprocessing, os, sys, time
from serve_apps.engines import orphan_guard

def run():
    os.setsid()
    time.sleep(600)

guard = orphan_guard.OrphanGuard()
# As a fork, it holds all of its parent's open files.
child = multiprocessing.get_context("fork").Process(target=run)
child.start()
if sys.argv[1] == "ended":
    guard.end()
else:
    time.sleep(orphan_guard.LOOK_S + 2)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("guard", ["there", "ended"])
def test_children_of_a_killed_parent_end(guard: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, guard], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    try:
        if guard == "there":
            psutil.wait_procs([child], 10)
            assert not child.is_running()
        else:
            assert child.is_running()
    finally:
        if child.is_running():
            child.kill()
