"""The study's page says what its lines say, and no more."""

import pytest

from studies import report


def line(method, share, value, rate=0.01, seed=0, task="sst2", metric="accuracy"):
    return {
        "plan": "subsets",
        "task": task,
        "seed": seed,
        "steps": 150,
        "method": method,
        "share": share,
        "rate": rate,
        "metric": metric,
        "value": value,
        "batch_size": 16,
        "dev_rows": 1000,
        "head_values": 770,
        "seconds": 60.0,
    }


def page(tmp_path, lines):
    path = tmp_path / "study.md"
    report.write(lines, path)
    return path.read_text()


def test_a_clear_win_a_slight_one_and_a_loss_are_told_apart(tmp_path):
    text = page(
        tmp_path,
        [
            line("structured", 1e-4, 80.0),
            line("random", 1e-4, 70.0),
            line("structured", 1e-3, 85.0),
            line("structured", 1e-3, 82.0, rate=0.03),
            line("random", 1e-3, 84.0),
            line("gradient", 5e-3, 84.0),
            line("structured", 5e-3, 83.0),
            line("random", 5e-3, 86.0),
        ],
    )
    assert "ahead by more than two standard errors: SST-2 at 0.01 % (+10.0);" in text
    assert "ahead, but within the noise: SST-2 at 0.1 % (+1.0);" in text
    assert "level or behind: SST-2 at 0.5 % (-3.0)." in text
    assert "- At 0.5 %: the random mask is best, 2.0 points over the gradient mask, within" in text
    assert "85.0 (0.01; 2)" in text
    assert "ONE seed (0)" in text


def test_what_is_missing_is_said(tmp_path):
    text = page(tmp_path, [line("random", 1e-3, 84.0), line("head only", None, 88.0)])
    assert "- At 0.1 %: not enough runs yet." in text
    text = page(
        tmp_path,
        [
            line("random", 1e-3, 84.0),
            line("structured", 1e-3, 84.0),
            line("head only", None, 88.0),
        ],
    )
    assert "are level" in text
    assert "Neither is better than head only (88.0)" in text
    assert "Not run yet: unstructured, gradient, non-adaptive." in text
    assert "UNFINISHED: 3 of 108 runs are there" in text


def test_a_rate_counts_only_where_all_seeds_have_it(tmp_path):
    lines = [line("random", 1e-3, v, r, s) for v, r, s in ((80, 0.01, 0), (82, 0.01, 1))]
    lines.append(line("random", 1e-3, 99.0, 0.03, 0))
    text = page(tmp_path, lines)
    assert "81.0 (0.01; 3)" in text
    assert "ONE seed" not in text


def test_noise_of_a_correlation_and_of_an_accuracy():
    accuracy = report._noise([line("random", 1e-3, 84.0)], 84.0)
    assert accuracy == pytest.approx(200 * 2**0.5 * (0.84 * 0.16 / 1000) ** 0.5)
    correlation = report._noise([line("random", 1e-3, 0.0, metric="matthews")], 0.0)
    assert correlation == pytest.approx(200 * 2**0.5 / 1000**0.5)


def test_types_are_those_of_the_rate_chosen(tmp_path):
    types = {"accuracy/same": 0.46, "accuracy/not": 1.0}
    worse = {"accuracy/same": 0.1, "accuracy/not": 0.2}
    lines = [
        {**line("random", 1e-3, 86.0, 0.01), "metrics": types},
        {**line("random", 1e-3, 80.0, 0.03), "metrics": worse},
    ]
    text = page(tmp_path, lines)
    assert "| method | not | same |" in text
    assert "| random | 100 | 46 |" in text
