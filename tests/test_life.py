import json, subprocess, sys, pathlib
import pytest
import lives

def test_lived(lived):
    print((lived/"summary.json").read_text())
    print((lived/"slots.json").read_text())
    print((lived/"retention.csv").read_text())

KILLS = [
    ["line", "wake", 1, 3],
    ["boundary", "001-wake"],
    ["line", "sleep", 1, 3],
    ["write", "001-sleep-000000004"],
    ["line", "sleep", 3, 5],
]
def test_chain(lived, born, compiled, tmp_path):
    driver = pathlib.Path(lives.__file__)
    command = [sys.executable, str(driver), str(tmp_path / "life"), str(born), str(compiled), json.dumps(KILLS)]
    out = subprocess.run(command, cwd=driver.parents[1], capture_output=True, text=True, env={**__import__("os").environ, "PYTHONPATH": str(driver.parents[1])})
    print(out.stdout[-3000:], out.stderr[-3000:])
    assert out.returncode == 0
    for n in ("metrics.jsonl","retention.csv","slots.json","links.jsonl"):
        assert (lived/n).read_bytes()==(tmp_path/"life"/n).read_bytes(), n
