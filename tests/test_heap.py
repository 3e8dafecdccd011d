import pathlib
import platform
import subprocess
import sys

import pytest

from launch import heap

ROOT = pathlib.Path(__file__).parent.parent
FAULTS = """
import resource, sys, threading
import numpy as np
from launch import heap

if sys.argv[1] == "keep":
    assert heap.keep()
sizes = [400_000_000, 40_000_000, 300_000]  # doubles; the first is above every threshold that could be set


def work(times):
    for _ in range(times):
        for n in sizes:
            np.empty(n)[::512] = 1  # a page is 512 of them


def on_another_thread(times):  # where XLA computes
    thread = threading.Thread(target=work, args=(times,))
    thread.start()
    thread.join()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


on_another_thread(1)
before = faults()
on_another_thread(2)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_that_were_freed_are_not_cleared_again():
    def faults(how):
        run = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(run, check=True, capture_output=True, cwd=ROOT).stdout)

    assert faults("keep") < 0.05 * faults("leave")


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    assert not heap.keep()
    monkeypatch.setattr(heap.sys, "platform", "linux")
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())  # a C library without it, as musl is
    assert not heap.keep()
