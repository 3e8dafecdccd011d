"""The page says what the files hold, escapes it, and survives what is missing or broken."""

import html.parser
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleep_jax import charts, metrics, report, runs
from sleep_jax.studies import tables

NAMES = ["birth", "travel", "banking", "small_talk", "kitchen_and_dining", "auto_and_commute"]
EVIL = "<script>alert('x')</script> & \"quoted\" ünï \ud800"


def make_run(path, method, seed, fall, rng, slept=True):
    """A life as life.py leaves it; `fall` is what an experience loses with each later one."""
    n = len(NAMES)
    learnt = np.array([0.89, 0.83, 0.79, 0.86, 0.74, 0.81]) + rng.normal(0, 0.01, n)
    accuracy = [
        [max(learnt[j] - fall * (i - j), 0.02) if j <= i else math.nan for j in range(n)] for i in range(n)
    ]
    final, birth = accuracy[-1], accuracy[0][0]
    nights = [metrics.Night(k, NAMES[k], "committed") for k in range(1, n)] if slept else []
    if slept:
        nights[3] = metrics.Night(4, NAMES[4], "rolled back", "the past fell from 0.82 to 0.76, margin 0.03")
    metrics.write_summary(
        path,
        metrics.Summary(
            method=method, seed=seed, final_accuracy=float(np.mean(final)),
            birth_before=birth, birth_after=final[0],
            experiences=dict(zip(NAMES[1:], final[1:], strict=True)),
            learning_accuracy=float(np.mean(learnt[1:])),
            backward_transfer=-fall * 2.5, forward_transfer=0.004, forgetting_from_first=fall * 2.5,
            forgetting_from_peak=fall * 2.5,
            wall_s={"birth": 512.2, "wake": 38.5, "dream": 220.0 * slept, "seed": 610.0 * slept},
            tokens={"source": 151_000, "dreamt": 812_345 * slept, "gradient": 3_456_789}, flops=4.2e13,
            peak_rss_bytes=1_450_000_000, nights=nights,
            anchor=[2.5 + fall * i for i in range(n)] if slept else (),
        ),
    )  # fmt: skip
    metrics.write_retention(path, NAMES, accuracy)
    for cycle in range(n):
        asked = [metrics.Answer(name, EVIL, "b", "b" * (k + 1), k == 0) for k, name in enumerate(NAMES)]
        metrics.write_answers(path, cycle, asked[: cycle + 2])
    with metrics.MetricsWriter(path) as log:
        for step in range(0, 600, 10):
            log.write("birth", 0, step, {"loss": 4 * math.exp(-step / 150) + 0.4 + rng.normal(0, 0.05)})
        log.time("birth", 0, 512.2, steps=600)
        for cycle in range(1, n) if slept else ():
            for step in range(0, 400, 5):
                down = math.exp(-step / 120) * (1 + cycle / 10)
                scalars = {"kl": 0.6 * down + 0.1, "entropy": 1.2 + 0.3 * down, "length": 11 + down}
                scalars["reward"] = 0.8 - down / 3
                scalars["grad_norm"] = math.nan if step == 200 else 2 * down + abs(rng.normal(0, 0.1))
                log.write("seed", cycle, step, scalars | {"clipped": step / 400})
    sizes = {"argument": 26_000_000, "output": 9_000_000, "temp": 190_000_000}
    metrics.write_memory(path, {name: {"flops": 3.1e10, "bytes": sizes} for name in ("birth", "seed")})
    slots = []
    for k in range(1, n) if slept else ():
        chain = 0.9 - 0.02 * k, 0.83 - 0.04 * k, 0.8 - 0.03 * k, 0.76 - 0.05 * k
        metrics.write_links(path, metrics.Links(k, NAMES[k], *chain, 0.85, 0.83, 0.9))
        fates = ["", "", "", "malformed", "inconsistent", "duplicate", "quota"]
        dreams = [
            metrics.Dream(
                k, "awake" if i % 3 else f"resting:{i % k}",
                f"please book a flight to lisbon for {i} people on friday morning",
                "book flight" if i % 5 else EVIL, NAMES[i % (k + 1)], None if i % 4 == 0 else i % 10 / 10,
                not fates[i % 7], fates[i % 7],
            )
            for i in range(300)
        ]  # fmt: skip
        file = metrics.write_dreams(path, f"night-{k:02d}", dreams)
        slots.append(metrics.Slot(1, k - 1, k, NAMES[k], 1500, 300, file, [], k == 4, 0.15 + k / 100))
    if slept:
        metrics.write_slots(path, slots)
        metrics.write_dreams(path, "rem-01-round-1", make_trials())


def make_trials():
    """A round of eight dreams: two not tried, and four of the others rewarded."""
    told = [("it did not end", None), ("duplicate", None), *[("", i % 3 > 0) for i in range(6)]]
    return [
        metrics.Trial(
            "ada", "questions", "Ask and answer. Ada lives in Rome.", EVIL, 1.5, -0.25, 0.1, 0.125,
            0.5 if reward else 0.125, 0.375 * bool(reward), 0.183, None if reason else int(reward), reason,
        )
        for reason, reward in told
    ]  # fmt: skip


def make_workdir(root):
    rng = np.random.default_rng(0)
    config = {"model": {"width": 128, "layers": 4}, "sleep": {"beta": 0.5, "day_at_hand": True}}
    root.mkdir(exist_ok=True)
    for seed in range(3):
        for method, fall in (("sleep", 0.01), ("sequential", 0.3), ("generative_replay", 0.06)):
            make_run(root / f"seed{seed}" / method, method, seed, fall, rng, slept=method != "sequential")
            text = json.dumps(config | {"method": method, "seed": seed})
            (root / f"seed{seed}" / method / "config.json").write_text(text)
    return root


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report.write(make_workdir(tmp_path_factory.mktemp("study"))).read_text(encoding="utf-8")


class Balanced(html.parser.HTMLParser):
    """Fails where an element is closed that is not the open one; keeps the text of each element by tag."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags = [], {}, set()
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


def test_page_is_well_formed_and_self_contained(page):
    assert "script" not in Balanced(page).tags
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)|url\(|@import|https?://""", page)
    drawn = re.findall(r' (?:d|x|y|points|width)="[^"]*"', page)
    assert drawn and not any("nan" in attribute for attribute in drawn) and "NaN" not in page


def test_every_section_has_its_content(page):
    text = Balanced(page).text
    assert [heading for _, heading, _ in report.SECTIONS] == text["h2"], "all but those of a study"
    assert "No " not in "".join(text["p"])
    assert {"seed · kl", "Learnt since birth", "sleep · seed 2"} <= set(text["b"])
    assert "FLOPs of training steps" in text["th"]


def test_texts_of_dreams_are_escaped(page):
    assert EVIL.replace("\ud800", "?") in Balanced(page).text["td"]
    assert "<script" not in page and "&lt;script&gt;" in page


def test_trials_are_counted_by_fate_and_what_was_measured_is_shown(page):
    text = Balanced(page).text
    [row] = [r for r in re.findall(r"<tr.*?</tr>", page) if "rem 1 round 1" in r and "sleep" not in r][:1]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    # 4 of 6; Wilson's interval by hand: (4 + 1.92) / (6 + 3.84) -+ 1.96 / (6 + 3.84) * sqrt(8 / 6 + 0.96)
    assert cells == ["rem 1 round 1", "8", "1", "1", "6", "4", "66.7 (30.0 to 90.3)", "12.5", "37.5"]
    assert {"+38 ± 18", "rewarded", "not rewarded", "it did not end"} <= set(text["td"])


def make_study(root):
    """What `studies.incorporation` leaves of two arms, one of which came to nothing."""
    for arm in ("seal", "sleep"):
        (root / arm).mkdir(parents=True)
        with metrics.MetricsWriter(root / arm) as log:
            log.write("fit", 1, 1, {"kl": 0.5})
        metrics.write_json(root / arm, "rounds.json", [])
    hits = {"seal": [[1, 0], [0, 0]], "sleep": [[1, 1], [1, 0]]}
    edits = {"hits": [[[0, 0]], [[1, 1]], [[1, 0]]], "elsewhere": [[0.9], [0.8], [0.7]], "nights": []}
    results = [
        {"arm": arm, "seed": 0, "rounds": [], "single": {"hits": h, "nights": []}, "edits": edits,
         "continued": {"hits": h, "elsewhere": [0.6], "nights": [{"outcome": "rolled back"}]}}
        for arm, h in hits.items()
    ]  # fmt: skip
    metrics.write_json(root, "incorporation.json", tables.incorporation(results))
    return report.write(root).read_text(encoding="utf-8")


def test_the_page_of_a_study_shows_its_tables_and_takes_its_parts_for_no_lives(tmp_path):
    text = Balanced(make_study(tmp_path)).text
    assert text["h2"][0] == "Passages" and "What was tried" not in text["h2"]
    # Passages of one seed: seal 50 and 0 %, sleep 100 and 50 %; both ahead by 50.
    assert {"25.0 ± 25.0", "75.0 ± 25.0", "50.0 ± 0.0"} <= set(text["td"])
    assert "The first passage, after each edit" in text["b"] and "0 runs" in "".join(text["p"])
    (tmp_path / "incorporation.json").write_text("{")
    assert "incorporation.json: " in "".join(Balanced(report.write(tmp_path).read_text()).text["p"])


def test_methods_show_mean_and_sample_deviation(tmp_path):
    for seed, value in enumerate([0.70, 0.74, 0.81]):
        (tmp_path / f"seed{seed}" / "sleep").mkdir(parents=True)
        summary = {"method": "sleep", "seed": seed, "final_accuracy": value, "backward_transfer": -value / 10}
        (tmp_path / f"seed{seed}" / "sleep" / "summary.json").write_text(json.dumps(summary))
    text = report.write(tmp_path).read_text()
    assert "75.0<small>± 5.6</small>" in text and "−7.5<small>± 0.6</small>" in text


def test_band_spans_the_seeds_and_unmeasured_points_break_nothing():
    nan = math.nan
    line = charts.Line("m", "red", [0, 1, 2], [0.5, nan, 1.0], [0.0, nan, 1.0], [1.0, nan, 1.0])
    drawing = charts.line_chart("t", [line], ["birth", "1", "2"], share=True)
    top, bottom = 8.0, 186.0  # 100 % and 0 % of a chart 210 high with margins of 8 and 24
    assert f'points="44.0,{top} 350.0,{top} 350.0,{top} 44.0,{bottom}"' in drawing
    assert f'd="M44.0 {(top + bottom) / 2}M350.0 {top}"' in drawing


def test_accuracy_over_nights_counts_only_what_was_lived_through(tmp_path):
    table = "after,birth,travel,banking\nbirth,0.8,0.1,0.3\ntravel,0.6,0.4,0.3\n"
    (tmp_path / "retention.csv").write_text(table)
    text = report.write(tmp_path).read_text()
    shown = re.findall(r"<title>sleepless, (\S+): (\S+) %</title>", text.replace(tmp_path.name, "sleepless"))
    assert shown == [("birth", "80.0"), ("1", "50.0"), ("birth", "80.0"), ("1", "60.0"), ("1", "40.0")]
    assert '<td class="cell hot" style="--v:80%" title="birth after birth: 80.0 %">80</td>' in text
    assert '<td class="cell" style="--v:60%" title="birth after travel: 60.0 %">60</td>' in text


def test_what_was_asked_ahead_is_faint_and_a_number_is_not_said_twice():
    rows = [("birth", {"birth": 0.9, "day 1": 0.9}), ("day 1", {"day 1": 0.7})]
    grid = charts.heat_map("t", ["birth", "day 1", "travel"], rows)
    classes = re.findall(r'<td class="([^"]*)" style="--v:(\d+)%"', grid)
    assert classes == [("cell hot", "90"), ("cell ahead", "90"), ("cell hot", "70")]
    assert re.findall(r"<th[^>]*>([^<]+)</th>", grid) == ["birth", "1", "2", "birth", "day 1"]
    assert charts.numbered(2, "travel") == "2 · travel" and charts.numbered(2, "day 12") == "2 · day 12"


def test_a_birth_is_no_life_but_its_curves_and_costs_are_shown(tmp_path):
    make_run(tmp_path / "sleep", "sleep", 0, 0.01, np.random.default_rng(1))
    with metrics.MetricsWriter(tmp_path / "birth") as log:
        for step in range(3):
            log.write("birth", 0, step, {"nll": 1.0 / (step + 1)})
        log.time("birth/fit", 0, 60.0)
        log.time("birth", 0, 90.0)
    found = runs.find_runs(tmp_path)
    assert [(run.name, run.is_life) for run in found] == [("sleep", True), ("birth", False)]
    text = Balanced(report.write(tmp_path).read_text()).text
    assert "1 run · 1 method · 1 seed" in text["p"] and "birth · nll" in text["b"]
    assert not [said for said in text["p"] if said.startswith("No ") and "config" not in said]
    assert text["td"].count("1.5 min") == 2  # of its only phase, and in all: parts of phases do not add up


def test_accuracy_over_nights_ends_where_the_summary_does(tmp_path):
    (tmp_path / "retention.csv").write_text("after,birth,travel\nbirth,0.8,0.1\ntravel,0.6,0.3\n")
    summary = {"final_accuracy": 0.5, "questions": {"birth": 200, "travel": 100}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (run,) = runs.find_runs(tmp_path)
    assert run.accuracy(slice(None)) == pytest.approx([0.8, summary["final_accuracy"]])
    assert run.accuracy(slice(1, None)) == pytest.approx([math.nan, 0.3], nan_ok=True)


def test_the_loss_on_general_text_is_drawn_where_it_was_measured(tmp_path):
    (tmp_path / "retention.csv").write_text("after,birth,travel\nbirth,0.8,0.1\ntravel,0.6,0.3\n")

    def drawn(summary):
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        text = report.write(tmp_path).read_text()
        if "General text" not in text:
            return None
        chart = text[text.index("General text") :]
        chart = chart[: chart.index("</svg>")].replace(tmp_path.name, "it")
        return re.findall(r"<title>it, (\S+): (\S+)</title>", chart)

    assert drawn({"anchor": [1.25, 1.5]}) == [("birth", "1.25"), ("1", "1.5")]
    assert "before birth" not in (tmp_path / "report.html").read_text()
    assert drawn({"anchor": []}) is drawn({}) is drawn({"anchor": "?"}) is None
    drawn({"anchor": [1.25, 1.5], "anchor_untouched": 1.125})
    assert "The checkpoint itself, before birth, took 1.125 nats" in (tmp_path / "report.html").read_text()


def test_curves_are_thinned_to_means_and_keep_gaps():
    x, y = charts.thin(range(1200), [*range(600), math.nan, *range(601, 1200)])
    assert len(x) == 120 and x[0] == y[0] == 4.5 and x[-1] == y[-1] == 1194.5
    assert [i for i, v in enumerate(y) if math.isnan(v)] == [60]
    assert charts.thin([3, 5], [1.0, 2.0]) == ([3, 5], [1.0, 2.0])


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_are_few_even_and_span(low, extent):
    high = low + extent
    ticks = charts.ticks(low, high)
    slack = 1e-6 * (high - low) + 1e-6 * abs(high) + 1e-30
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack and 1 <= len(ticks) <= 7
    assert np.allclose(np.diff(ticks, 2), 0, atol=slack)


@given(*[st.floats(0, 1)] * 4)
def test_leaks_are_shares_of_one(awake, recalled, student, after):
    shares = runs.leaks({"awake": awake, "recalled": recalled, "student": student, "after": after})
    assert all(share >= 0 for share in shares.values()) and math.isclose(sum(shares.values()), 1)
    assert shares["kept"] == after


def test_leaks_of_a_falling_chain_are_its_steps():
    shares = runs.leaks({"awake": 0.9, "recalled": 0.7, "student": 0.6, "after": 0.2})
    expected = {"kept": 0.2, "router": 0.4, "student": 0.1, "dreams": 0.2, "awake": 0.1}
    assert shares == pytest.approx(expected)
    # Recalling more than the awake self knows is no gain.
    shares = runs.leaks({"awake": 0.5, "recalled": 0.9, "student": 0.4, "after": 0.4})
    assert shares == pytest.approx({"kept": 0.4, "router": 0, "student": 0.1, "dreams": 0, "awake": 0.5})
    assert runs.leaks({"awake": 0.9, "recalled": None, "student": 0.6, "after": 0.2}) is None


def test_sample_takes_from_every_fate_and_keeps_the_order():
    dreams = [{"teacher": "awake", "reason": "", "i": i} for i in range(1000)]
    dreams[500] = {"teacher": "resting:3", "reason": "quota", "i": 500}
    some = [dream["i"] for dream in runs.sample(dreams, 5)]
    assert some == sorted(some) and len(some) == 5 and 500 in some and max(some) > 700
    assert runs.sample(dreams[:3], 5) == dreams[:3]


def test_a_life_in_its_work_directory_itself(tmp_path):
    make_run(tmp_path, "sleep", 0, 0.01, np.random.default_rng(1))
    assert [(run.name, run.method, run.seed) for run in runs.find_runs(tmp_path)] == [(".", "sleep", "0")]
    assert report.write(tmp_path) == tmp_path / "report.html"


def test_what_is_missing_or_broken_is_said(tmp_path):
    for method in ("sleep", "ewc", "joint"):
        (tmp_path / method / "dreams").mkdir(parents=True)
    (tmp_path / "sleep" / "summary.json").write_text('{"method": "sleep", "seed"')
    (tmp_path / "sleep" / "links.jsonl").write_text('{"night": 1}\n{"night": 2, "aw')
    (tmp_path / "sleep" / "retention.csv").write_text("after,birth\nbirth,lots\n")
    (tmp_path / "ewc" / "summary.json").write_text(
        '{"method": "ewc", "final_accuracy": "high", "experiences": [], "nights": [0], "wall_s": {"a": []}}'
    )
    (tmp_path / "ewc" / "retention.csv").write_text("after,birth,travel\nbirth,0.9,\ntravel,0.5\n")
    (tmp_path / "ewc" / "slots.json").write_text('[{"merged_from": 3}, 7]')
    (tmp_path / "ewc" / "memory.json").write_text('{"step": null}')
    broken = '{"phase": "seed", "kl": 1}\n{"cycle": 1, "step": 0, "kl": ""}\n'
    (tmp_path / "ewc" / "metrics.jsonl").write_text(broken)
    (tmp_path / "ewc" / "dreams" / "night-01.jsonl").write_text('{"answer": 3}\nnothing\n[]\n')
    (tmp_path / "joint" / "metrics.jsonl").touch()
    text = " ".join(Balanced(report.write(tmp_path).read_text()).text["p"])
    for said in (
        "sleep/summary.json: ", "sleep/retention.csv: could not convert",
        "sleep/links.jsonl: 1 unreadable line left out",
        "ewc/dreams/night-01.jsonl: 2 unreadable lines left out",
        "No summary.json (not ended): sleep, joint.", "No retention.csv: sleep, joint.", "No config.json.",
        "No metrics.jsonl with a curve in it.",
    ):  # fmt: skip
        assert said in text


def test_an_empty_directory_and_none(tmp_path):
    assert "No life was found here" in report.write(tmp_path).read_text()
    with pytest.raises(NotADirectoryError, match="nowhere"):
        report.write(tmp_path / "nowhere")
