"""The report: sections, self-containment, escaping, honest charts."""

import itertools
import re
from html.parser import HTMLParser

import pytest

from graftwork.training._charts import Grid, Mark, Series, bar_list, heat_map, line_chart, ticks
from graftwork.training._report import Report, TensorShare, render, split_name

VOID = {"meta", "br", "link", "img", "input"}


class Balanced(HTMLParser):
    """Checks that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(html):
    page = Balanced()
    page.feed(html)
    assert page.open == []
    return " ".join(page.text)


def history():
    for step in range(1, 41):
        stage = "gates" if step <= 30 else "fixed mask"
        row = {"step": step, "stage": stage, "loss": 1.0 / step}
        yield row | ({"density": 1.0 / step} if step <= 30 else {})
        if step % 10 == 0:
            yield {"step": step, "stage": stage, "eval/accuracy": step / 40}


def full_report():
    names = [f"encoder.layer.{i}.{k}" for i in range(3) for k in ("query.weight", "query.bias")]
    return Report(
        title="reviews <1>",
        facts=[("base", "minilm"), ("tuner", "diff_pruning")],
        headline=[("accuracy", "0.998", "2,000 held-out rows")],
        history=list(history()),
        groups={"same": {"accuracy": 0.99}, "not": {"accuracy": 0.5}},
        tensors=[
            TensorShare("embeddings.weight", 1000, 1, 8),
            *(TensorShare(n, 200, i, 4 * i) for i, n in enumerate(names)),
        ],
        parts=[("positions", 300), ("values", 100)],
        config="base: minilm\n",
        provenance={"method": "diff_pruning", "seeds": {"run": 0}},
        commands=[("Predict:", "graftwork predict runs/a/delta.graft --text 'a & b'")],
    )


def test_every_section_is_there_and_the_html_is_balanced():
    html = render(full_report())
    text = read(html)
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Results by type of row",
        "Learning",
        "Where in the network the task lives",
        "Size ledger",
        "How to use the delta",
        "How it was made",
    ]
    for shown in ("0.998", "reviews <1>", "400 bytes in one file.", "base: minilm", "'a & b'"):
        assert shown in text
    charts = ("Loss", "Held-out metrics", "Share of weights open", "Other parameters")
    assert all(chart in text for chart in charts)


def test_it_needs_nothing_else():
    html = render(full_report())
    assert not re.search(r"<script|<link|<img|@import|url\(", html)
    outside = set(re.findall(r"https?://[^\s\"'<]+", html)) - {"http://www.w3.org/2000/svg"}
    assert outside == set()
    assert "prefers-color-scheme:dark" in html


def test_foreign_text_is_escaped():
    bad = "<script>alert(1)</script>"
    report = Report(
        title=bad,
        facts=[(bad, bad)],
        headline=[(bad, bad, bad)],
        groups={bad: {bad: 1.0}},
        tensors=[TensorShare(bad, 2, 1, 1)],
        parts=[(bad, 1)],
        config=bad,
        provenance={bad: bad},
        commands=[(bad, bad)],
        history=[{"step": 1, "stage": s, "loss": 1.0, f"eval/{bad}": 1.0} for s in (bad, "b")],
    )
    assert "<script" not in render(report)


def test_a_head_only_delta_says_that_the_base_is_untouched():
    text = read(render(Report(title="head", parts=[("head", 100)])))
    assert "changes no weight of the base" in text


def test_empty_sections_are_left_out():
    html = render(Report(title="bare"))
    assert "Learning" not in html
    assert "Size ledger" not in html


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layer.3.attention.self.query.weight", "encoder.layer.3"),
        ("h.11.mlp.c_fc.weight", "h.11"),
        ("blocks.0.1.weight", "blocks.0"),
        ("0.weight", "0"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("embeddings.word_embeddings.weight", ""),
    ],
)
def test_split_name(name, layer):
    found, kind = split_name(name)
    assert found == layer
    assert f"{found}.{kind}".lstrip(".") == name


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.21), (-3, 5), (1e-9, 2e-9), (7, 7)])
def test_ticks_cover_the_range_in_even_steps(low, high):
    shown = ticks(low, high)
    assert shown[0] <= low
    assert shown[-1] >= high
    assert 2 <= len(shown) <= 12
    steps = [b - a for a, b in itertools.pairwise(shown)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_what_is_not_finite_is_left_out():
    line = Series("loss", [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 0.5)])
    drawing = line_chart("loss", [line], marks=[Mark(1, "next")])
    assert "nan" not in drawing
    assert "inf" not in drawing
    assert len(re.search(r'points="([^"]+)"', drawing)[1].split()) == 2
    assert line_chart("nothing", [Series("loss", [(0, float("nan"))])]) == ""


def test_line_charts_of_one_run_share_their_x_axis():
    series = [Series("density", [(0, 1.0), (10, 0.1)])]
    ends = [
        float(re.search(r'points="[^"]* ([\d.]+),', line_chart("d", series, x_last=last))[1])
        for last in (10, 20)
    ]
    assert ends[0] - 56 == pytest.approx(2 * (ends[1] - 56))


def test_heat_and_bars_are_proportional():
    grid = Grid({("a", "0"): 0.5, ("a", "1"): 1.0}, ["a", "b"], ["0", "1"], "layer")
    drawing = heat_map(grid, value_format=str, title="heat")
    assert re.findall(r'fill-opacity="([\d.]+)"', drawing) == ["0.500", "1.000"]
    bars = bar_list([("a", 1.0), ("b", 4.0), ("c", 0.0)], value_format=str, title="bars")
    wide = [float(w) for w in re.findall(r'class="bar"[^>]* width="([\d.]+)"', bars)]
    assert wide[1] == pytest.approx(4 * wide[0], rel=1e-3)
    assert wide[2] == 0
