import subprocess
import sys

import pytest

from launch import heap

FAULTS = """
import ctypes, resource, sys
import numpy as np
from launch import heap

if sys.argv[1] == "keep":
    assert heap.keep()
sizes = [40_000_000, 300_000, 9_000_000]  # doubles; the last is above every threshold that glibc finds itself
for _ in range(2):
    [np.ones(n) for n in sizes]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    [np.ones(n) for n in sizes]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not heap.keep(), reason="the C library is not glibc")
def test_pages_that_were_freed_are_not_cleared_again():
    def faults(how):
        return int(
            subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True).stdout
        )

    assert faults("keep") < 0.05 * faults("leave")


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    assert not heap.keep()
    monkeypatch.setattr(heap.sys, "platform", "linux")
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())  # a C library without it, as musl is
    assert not heap.keep()
