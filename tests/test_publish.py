"""What life.publish makes of a retention matrix, by hand and while the life is still going on."""

import json
import types

import pytest

from sleep_jax import life, metrics
from sleep_jax.fit import Account


def world(path, questions):
    experiences = [types.SimpleNamespace(name=name, test=(None,) * n) for name, n in questions.items()]
    stream = types.SimpleNamespace(birth=experiences[0], days=tuple(experiences[1:]))
    return types.SimpleNamespace(workdir=path, stream=stream, seed=3, account=Account(source=1))


def state(retention, links=()):
    return types.SimpleNamespace(
        retention=retention, links=links, slots=[], forgotten=[], nights=[], anchor=[]
    )


def test_a_life_in_progress_sees_one_experience_ahead(tmp_path):
    rows = [[0.9, 0.2, None], [0.8, 0.6, 0.1]]
    with metrics.MetricsWriter(tmp_path) as log:
        log.time("wake/fit", 1, 2.0)
        log.time("wake", 1, 3.0)
    summary = life.publish(world(tmp_path, {"birth": 30, "travel": 10, "banking": 20}), state(rows), "sleep")
    assert summary.final_accuracy == pytest.approx((30 * 0.8 + 10 * 0.6) / 40)
    assert summary.forward_transfer == pytest.approx(0.2)
    assert summary.forgetting_from_first == pytest.approx(0.1) == -summary.backward_transfer
    assert summary.experiences == {"travel": 0.6} and summary.questions == {"birth": 30, "travel": 10}
    assert summary.wall_s == {"wake": 3.0}
    assert (tmp_path / "retention.csv").read_text().splitlines()[2] == "travel,0.8,0.6,0.1"


def test_forward_transfer_is_null_where_nothing_was_asked_ahead(tmp_path):
    life.publish(world(tmp_path, {"birth": 1, "travel": 1}), state([[0.9, None], [0.8, 0.6]]), "sleep")
    assert json.loads((tmp_path / "summary.json").read_text())["forward_transfer"] is None
    assert (
        life.publish(world(tmp_path, {"birth": 1, "x": 1}), state([[0.9, 0.0]]), "sleep").forward_transfer
        is None
    )


def test_what_a_night_did_is_the_difference_between_two_mornings(tmp_path):
    rows = [[0.9, 0.2, None], [0.8, 0.6, 0.1], [0.7, 0.5, 0.4]]
    links = [metrics.Links(n, "day", 0.5, 1.0, 0.6, None, None, None, 0.5) for n in (1, 2)]
    life.publish(world(tmp_path, {"birth": 30, "a": 10, "b": 20}), state(rows, links), "sleep")
    first, second = metrics.read_jsonl(tmp_path / "links.jsonl")[0]
    assert (first["after"], first["old_before"], first["old_after"]) == (0.6, 0.9, 0.8)
    assert (second["after"], second["old_before"]) == (0.4, pytest.approx((30 * 0.8 + 10 * 0.6) / 40))
    assert second["old_after"] == pytest.approx((30 * 0.7 + 10 * 0.5) / 40)
