"""Answers that changed over a life: which, and what they are called."""

import pathlib

from sleep_jax import metrics, report, report_answers


def line(experience, question, expected, answer):
    right = expected == answer
    return {
        "experience": experience,
        "question": question,
        "expected": expected,
        "answer": answer,
        "right": right,
    }


MORNINGS = [
    [line("birth", "a?", "1", "1"), line("day 1", "b?", "2", "9")],
    [line("birth", "a?", "1", "1"), line("day 1", "b?", "2", "2"), line("day 2", "c?", "3", "8")],
    [line("birth", "a?", "1", "7"), line("day 1", "b?", "4", "4"), line("day 2", "c?", "3", "3")],
]


def test_an_answer_changes_since_the_first_morning_after_its_day():
    names = ["birth", "day 1", "day 2"]
    changed, asked = report_answers.changes(MORNINGS, names)
    assert asked == 2, "the last day's was asked once after it"
    keys = "question", "before", "answer", "was", "expected", "fate"
    assert [tuple(c[k] for k in keys) for c in changed] == [
        ("b?", "2", "4", "2", "4", "follows what was told since"),
        ("a?", "1", "7", "1", "1", "lost"),
    ]
    assert report_answers.changes(MORNINGS[:1], names) == ([], 0)
    unasked = [[line for line in lines if line["experience"] != "day 1"] for lines in MORNINGS]
    changed, asked = report_answers.changes(unasked, names)
    assert (asked, [c["fate"] for c in changed]) == (1, ["lost"]), "day 2 is ahead of day 1's morning still"


def test_the_page_lists_them_and_how_many_there_are(tmp_path: pathlib.Path):
    for cycle, lines in enumerate(MORNINGS):
        metrics.write_answers(tmp_path, cycle, [metrics.Answer(**entry) for entry in lines])
    metrics.write_json(tmp_path, "summary.json", {"method": "sleep", "seed": 0})
    metrics.write_retention(tmp_path, ["birth", "day 1", "day 2"], [[1.0, None, None]])
    page = report.write(tmp_path).read_text()
    assert "2 of 2 answers changed: 1 lost, 1 follows what was told since" in page
    assert "4 (was: 2)" in page
