"""What is written can be cut and continued to the same bytes; what is shown says what was meant."""

import dataclasses
import io
import json
import math
import pathlib
import struct
import sys

import numpy as np
import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from sleep_jax import figures, metrics, terminal

SUMMARY = metrics.Summary(
    method="sleep", seed=1, final_accuracy=0.8231, birth_before=0.9, birth_after=0.85,
    experiences={"travel": 0.77, "banking": None}, learning_accuracy=0.8, backward_transfer=-0.02,
    forward_transfer=0.01, forgetting_from_first=0.02,
    forgetting_from_peak=0.031, wall_s={"wake": 30.0, "seed": 150.0},
    tokens={"source": 10, "dreamt": 20, "gradient": 1_234_567}, flops=math.inf, peak_rss_bytes=7,
    nights=[metrics.Night(1, "travel", "committed")], anchor=[1.5, 1.25], anchor_untouched=1.5,
)  # fmt: skip


def log(writer, steps):
    for step in steps:
        writer.write("seed", 1 + step // 5, step, {"kl": 0.1 * step, "grad": np.float32(step) / 3})


def test_a_resumed_life_writes_the_same_bytes(tmp_path):
    with metrics.MetricsWriter(tmp_path / "whole") as writer:
        log(writer, range(10))
    writer = metrics.MetricsWriter(tmp_path / "killed")
    log(writer, range(4))
    position = writer.position()
    log(writer, range(4, 7))
    file = tmp_path / "killed" / "metrics.jsonl"
    assert len(file.read_text().splitlines()) == 7  # flushed, though nothing was closed
    with file.open("a") as half:
        half.write('{"cycle": 2, "gr')
    with metrics.MetricsWriter(tmp_path / "killed", position=position) as writer:
        assert writer.position() == position == 4
        log(writer, range(4, 10))
    assert file.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_without_a_position_only_the_half_line_goes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    (tmp_path / "timings.jsonl").write_text('{"seconds": 1.5}\n{"sec')
    with metrics.MetricsWriter(tmp_path) as writer:
        assert writer.position() == 2
        writer.time("seed", 1, 2.5, steps=np.int64(4))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'
    (first, timed), bad = metrics.read_jsonl(tmp_path / "timings.jsonl")
    assert timed.pop("peak_rss_bytes") > 1e7
    assert timed == {"phase": "seed", "cycle": 1, "seconds": 2.5, "steps": 4}
    assert first == {"seconds": 1.5} and not bad


def test_a_checkpoint_of_another_life_is_refused_and_nothing_lost(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"half')
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds 1 lines.* held 3"):
        metrics.MetricsWriter(tmp_path, position=3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n{"half'


def test_lines_have_sorted_keys_full_floats_and_nothing_else(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write("wake", 2, 7, {"z": np.float32(0.1), "a": 1, "n": math.nan})
        with pytest.raises(ValueError, match=r"\['cycle'\] of phase 'wake'"):
            writer.write("wake", 2, 8, {"cycle": 1.0})
        assert writer.position() == 1
    line = '{"a": 1.0, "cycle": 2, "n": NaN, "phase": "wake", "step": 7, "z": 0.10000000149011612}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == line


def events(folder):
    """(tag, step, value) of all scalars in the event files of a folder, and the steps they purge from."""
    scalars, purged = [], []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            scalars += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            purged += [event.step] if event.HasField("session_log") else []
            data = data[16 + length :]
    return scalars, purged


def test_tensorboard_has_a_run_a_cycle_and_forgets_what_a_resumed_life_repeats(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        assert not (tmp_path / "tb").exists()
        log(writer, range(7))
        writer.write("seed", 2, 7, {"kl": math.nan})
    with metrics.MetricsWriter(tmp_path, position=6) as writer:
        log(writer, range(6, 8))
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == ["01-seed", "02-seed"]
    scalars, purged = events(tmp_path / "tb" / "02-seed")
    assert purged == [5, 6]
    kl = [(step, value) for tag, step, value in scalars if tag == "seed/kl"]
    assert kl == [(s, pytest.approx(0.1 * s)) for s in (5, 6, 6, 7)]


def test_records_are_strict_json_and_replaced_as_a_whole(tmp_path):
    metrics.write_summary(tmp_path / "run", SUMMARY)
    text = (tmp_path / "run" / "summary.json").read_text()
    expected = dataclasses.asdict(SUMMARY) | {"flops": None}
    assert json.loads(text, parse_constant=pytest.fail) == expected
    metrics.write_memory(tmp_path / "run", {"seed": {"flops": np.float32(2), "bytes": {"temp": np.int64(5)}}})
    assert json.loads((tmp_path / "run" / "memory.json").read_text())["seed"]["bytes"] == {"temp": 5}
    metrics.write_slots(tmp_path / "run", [metrics.Slot(1, 0, 1, "travel", 5, 6, "d", merged_from=(1, 2))])
    assert json.loads((tmp_path / "run" / "slots.json").read_text())[0]["merged_from"] == [1, 2]
    assert not list((tmp_path / "run").glob("*.partial"))


def test_dreams_keep_any_text(tmp_path):
    odd = 'ünï "quoted" \n\t\x00 \ud800 \U0001f4a4 \u2028'
    dream = metrics.Dream(3, "awake", odd, odd, "travel", None, True)
    path = metrics.write_dreams(tmp_path, "night-03", [dream, dream])
    assert path == "dreams/night-03.jsonl"
    assert metrics.read_jsonl(tmp_path / path) == ([dataclasses.asdict(dream)] * 2, 0)


def test_a_repeated_night_replaces_itself_and_later_ones(tmp_path):
    def link(night, awake):
        return metrics.Links(night, "x", awake, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)

    for night, awake in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.9)):
        metrics.write_links(tmp_path, link(night, awake))
    lines, _ = metrics.read_jsonl(tmp_path / "links.jsonl")
    assert [(line["night"], line["awake"]) for line in lines] == [(1, 0.1), (2, 0.9)]


def test_retention_has_a_row_for_what_was_lived_and_blanks_for_what_was_not_measured(tmp_path):
    rows = [[0.9, None, math.nan], [np.float64(0.5), 0.1, None]]
    metrics.write_retention(tmp_path, ["birth", 'a,"b', "c"], rows)
    text = (tmp_path / "retention.csv").read_text()
    assert text == 'after,birth,"a,""b",c\nbirth,0.9,,\n"a,""b",0.5,0.1,\n'
    for wrong in ([[0.9]], [[0.9, 0.1, 0.1]] * 4):
        with pytest.raises(ValueError, match="do not fit 3 names"):
            metrics.write_retention(tmp_path, ["birth", "b", "c"], wrong)


def test_unreadable_lines_are_counted(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n[2]\n\xff\n{"a": 3}\n{"a"')
    assert metrics.read_jsonl(tmp_path / "x.jsonl") == ([{"a": 1}, {"a": 3}], 3)
    assert metrics.read_jsonl(tmp_path / "missing.jsonl") == ([], 0)


def test_what_is_timed_is_logged_when_it_ends_well(tmp_path, monkeypatch):
    ticks = iter([3.0, 5.5, 9.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(metrics, "peak_rss_bytes", lambda: 12)
    with metrics.MetricsWriter(tmp_path) as writer:
        with writer.timed("sleep/dream", 2):
            pass
        with pytest.raises(KeyError), writer.timed("sleep/judge", 2):
            raise KeyError
    lines, _ = metrics.read_jsonl(tmp_path / "timings.jsonl")
    assert lines == [{"phase": "sleep/dream", "cycle": 2, "seconds": 2.5, "peak_rss_bytes": 12}]


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_15_seconds_with_rate_and_eta(clock, capsys):
    for _ in terminal.progress(100, "seeding", start=20):
        clock[0] += 1.0 if clock[0] < 130 else 0.5
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "seeding: 35/100 · 1/s · ETA 1.1 min",
        "seeding: 50/100 · 1/s · ETA 50.0 s",
        "seeding: 80/100 · 2/s · ETA 10.0 s",
    ]
    assert lines[3:] == ["seeding: 100/100 · 1.45/s · took 55.0 s"]


def test_what_is_quick_is_silent_and_totals_may_be_unknown(clock, capsys):
    assert list(terminal.progress([5, 6], "quick")) == [5, 6]
    assert list(terminal.progress(5, "rest", start=3)) == [3, 4]
    assert capsys.readouterr().out == ""
    with terminal.progress(iter(()), "reading") as bar:
        clock[0] += 20
        bar.advance(0)
        clock[0] += 20
        bar.advance(5)
    assert capsys.readouterr().out.splitlines() == [
        "reading: 0 · 0/s · ETA –", "reading: 5 · 4.0 s each · ETA –",
        "reading: 5 · 8.0 s each · took 40.0 s",
    ]  # fmt: skip


def test_the_end_of_a_loop_is_told_once(clock, capsys):
    for _ in terminal.progress(2, "slow"):
        clock[0] += 20
    assert capsys.readouterr().out.splitlines() == [
        "slow: 1/2 · 20.0 s each · ETA 20.0 s", "slow: 2/2 · 20.0 s each · took 40.0 s",
    ]  # fmt: skip


def test_bars_nest_on_a_terminal_and_end_with_the_outermost(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for _ in terminal.progress(2, "days"):
        for _ in terminal.progress([1, 2, 3], "steps [of it]"):
            assert [task.description for task in terminal.Bar._live.tasks] == ["days", "steps [of it]"]
        assert [task.total for task in terminal.Bar._live.tasks] == [2]
    assert terminal.Bar._live is None
    with pytest.raises(RuntimeError, match="day is over"), terminal.progress(2, "days"):
        raise RuntimeError("the day is over")
    assert terminal.Bar._live is None
    assert "days" in capsys.readouterr().out


def test_closing_table_shows_lives_and_nights():
    console = rich.console.Console(file=io.StringIO(), width=40)
    night = metrics.Links(1, "travel", 0.9, 0.7, 0.8, 0.75, 0.88, 0.87, 0.91)
    other = dataclasses.asdict(SUMMARY) | {"method": "se[red]q", "experiences": {"travel": 0.123}}
    terminal.closing_table([SUMMARY, other], {"sleep [b]": [night]}, console)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    for expected in (
        "sleep 1 82.3 90.0 → 85.0 80.0 3.1 1.23 M 3.0 min", "sleep 1 77.0 –", "se[red]q 1 12.3 –",
        "sleep [b]: before sleep → after sleep", "1 travel 91.0 → 75.0 88.0 → 87.0",
    ):  # fmt: skip
        assert expected in lines


def test_the_morning_says_how_the_night_ended_and_what_is_known():
    known, general = "all 82.3 % · birth 85.0 %", "general text 1.500 → 1.250 nats a token"
    assert terminal.morning(SUMMARY) == f"  night 1 committed · {known} · banking – % · {general}"
    born = dataclasses.replace(SUMMARY, anchor_untouched=1.375)
    assert terminal.morning(born).endswith(
        "general text 1.375 untouched → 1.500 at birth → 1.250 nats a token"
    )
    night = metrics.Night(2, "banking", "rolled back", "not finite")
    worse = dataclasses.replace(SUMMARY, nights=[*SUMMARY.nights, night], experiences={"banking": 0.5})
    assert terminal.morning(worse).startswith("  night 2 rolled back (not finite) · all")
    sleepless = dataclasses.replace(SUMMARY, nights=[], experiences={}, anchor=())
    assert terminal.morning(sleepless) == f"  {known}"


@given(st.floats(1e-3, 1e20))
def test_scaled_keeps_three_digits(value):
    digits, _, unit = figures.scaled(value).partition(" ")
    power = ("", "k", "M", "G", "T", "P", "E").index(unit)
    assert math.isclose(float(digits) * 1000**power, value, rel_tol=5.1e-3)
    assert power == 0 or power == 6 or 1 <= float(digits) < 1000


def test_formats():
    shown = [figures.scaled(v, "B") for v in (None, 0, 999, 1000, 999_700, 1_234_567)]
    assert shown == ["–", "0 B", "999 B", "1 kB", "1 MB", "1.23 MB"]
    assert [figures.duration(v) for v in (None, 8.12, 200, 7560)] == ["–", "8.1 s", "3.3 min", "2.1 h"]
    assert [figures.percent(v) for v in (None, 0.9234)] == ["–", "92.3"]


def test_peak_memory_is_in_bytes(monkeypatch):
    block = np.ones(40 << 17)  # 40 MiB
    peak = metrics.peak_rss_bytes()
    assert block.nbytes < peak < 1 << 40
    status = pathlib.Path("/proc/self/status")
    if status.exists() and "VmHWM" in (text := status.read_text()):
        assert peak >= 0.9 * 1024 * int(text.split("VmHWM:")[1].split()[0])
    monkeypatch.setattr(sys, "platform", "darwin" if sys.platform != "darwin" else "linux")
    assert sorted([metrics.peak_rss_bytes() / peak, peak / metrics.peak_rss_bytes()]) == pytest.approx(
        [1 / 1024, 1024], rel=0.05
    )
