"""What a mistyped key is told, by the command itself."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    "args, said",
    [
        (["--config.sleep.stepz=3"], 'Did you mean "steps" instead of "stepz"?'),
        (["--config=configs/clinc150.py", "--config.sleeep.steps=3"], 'Did you mean "sleep"'),
    ],
)
def test_a_key_that_there_is_not_is_named_in_one_line(args, said, tmp_path):
    command = [sys.executable, "-m", "launch.main", f"--workdir={tmp_path / 'x'}", *args]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert said in run.stderr and "configs/base.py" in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert not (tmp_path / "x").exists()


def test_every_config_has_a_directory_of_its_own(tmp_path):
    """Refused for their data, before anything is lived: each begins the directory named like its config."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = [sys.executable, "-m", "launch.main"]
    for args, name in (
        (["--config.stream.source=documents"], "tiny"),
        (["--config=configs/clinc150.py", "--config.data_dir=nowhere"], "clinc150"),
    ):
        run = subprocess.run(
            [*command, *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 1 and (tmp_path / "runs" / name / "config.json").exists(), run.stderr
