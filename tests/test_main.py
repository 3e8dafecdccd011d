"""How the commands end when something is in the way: in one line, not in a traceback."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# The command with an error in place of its work.
FAILING = """
import runpy, sys
from sleep_jax import forgetting, life

def fail(*_):
    raise {error}

life.run = forgetting.forget = fail
sys.argv = ["launch", "--workdir=nowhere", *{args}]
runpy.run_module("launch.{command}", run_name="__main__")
"""
FULL = f"OSError({errno.ENOSPC}, 'No space left on device')"


def ended(command, args, error, **environment):
    script = FAILING.format(command=command, args=args, error=error)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "command, args, error, said",
    [
        ("main", [], FULL, "OSError: [Errno 28] No space left on device"),
        ("forget", ["--night=1"], FULL, "OSError: [Errno 28] No space left on device"),
        ("main", [], "FloatingPointError('lower wake.lr')", "FloatingPointError: lower wake.lr"),
        ("main", [], "ImportError('needs the extra')", "ImportError: needs the extra"),
    ],
)
def test_what_a_person_can_mend_is_said_in_a_line(command, args, error, said):
    run = ended(command, args, error)
    assert run.returncode == 1
    assert run.stderr.splitlines() == [said, "(SLEEP_JAX_TRACEBACK=1 shows where)"]


@pytest.mark.parametrize(
    "error, environment", [("TypeError('a mistake of ours')", {}), (FULL, {"SLEEP_JAX_TRACEBACK": "1"})]
)
def test_a_mistake_of_ours_or_one_who_asks_gets_the_traceback(error, environment):
    run = ended("main", [], error, **environment)
    assert run.returncode == 1 and "Traceback" in run.stderr
