"""Run configurations as YAML: one to one with the fields, strict, exact round trips."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork._errors import ConfigError
from graftwork.steps import PlainSumConfig
from graftwork.tasks import METRICS, GeneratorStream, TaskConfig
from graftwork.training._config import (
    BaseOptions,
    LogConfig,
    RunConfig,
    from_tree,
    from_yaml,
    to_tree,
    to_yaml,
)
from graftwork.training._plain import from_plain, to_plain
from graftwork.training._train_config import TrainConfig, share_steps, stage_steps
from graftwork.training._yaml import dump_yaml, parse_yaml
from graftwork.tuning import TUNERS, DiffPruning, Full, RandomMask, Stage
from tests.training.toys import make_base, make_toy_task

NAMES = st.text(min_size=1, max_size=8)
RATES = st.floats(1e-9, 10.0)
STEPS = st.builds(
    PlainSumConfig,
    weights=st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
    warmup=st.floats(0.0, 0.99),
    weight_decay=st.floats(0.0, 1.0),
)
TRAIN = st.builds(
    TrainConfig,
    steps=st.integers(1, 10**9),
    epochs=st.none() | st.floats(0.01, 100.0),
    batch_size=st.none() | st.integers(1, 512),
    precision=st.sampled_from(["fp32", "bf16"]),
    dropout=st.booleans(),
    learning_rates=st.dictionaries(
        NAMES, st.dictionaries(st.sampled_from(["values", "gates", "head"]), RATES), max_size=2
    ),
)
TUNERS_MADE = st.one_of(
    st.builds(
        RandomMask, share=st.floats(1e-6, 1.0), values_lr=RATES, mask_seed=st.none() | st.integers()
    ),
    st.builds(
        DiffPruning,
        groups=st.sampled_from(["tensor", "neuron", "layer", None]),
        gates=st.lists(NAMES, min_size=1, max_size=2).map(tuple),
        gates_lr=st.none() | RATES,
    ),
    st.builds(Full, values_lr=RATES),
)
TASKS = st.builds(
    TaskConfig,
    data=NAMES,
    columns=st.dictionaries(NAMES, NAMES, max_size=2),
    labels=st.lists(NAMES, max_size=3).map(tuple),
    metrics=st.lists(st.sampled_from(sorted(METRICS)), max_size=2).map(tuple),
    header=st.booleans(),
    max_length=st.none() | st.integers(1, 512),
)
CONFIGS = st.builds(
    RunConfig,
    base=NAMES,
    base_options=st.builds(BaseOptions, dtype=st.sampled_from([None, "float64", "bfloat16"])),
    task=TASKS,
    tuner=TUNERS_MADE,
    step=STEPS,
    train=TRAIN,
    targets=st.none() | st.lists(NAMES, max_size=2).map(tuple),
    stored=st.sampled_from(["float16", "int8"]),
    seed=st.integers(),
    out=NAMES,
    log=st.builds(LogConfig, progress=st.sampled_from(["auto", "bars", "lines", "silent"])),
)


@pytest.mark.filterwarnings("ignore:Do not use the .random. module")  # run-time type checks do
@settings(deadline=None, max_examples=30)
@given(CONFIGS)
def test_yaml_round_trip(config: RunConfig) -> None:
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize("name", sorted(TUNERS))
def test_every_tuner_round_trips_under_its_name(name: str) -> None:
    config = RunConfig(tuner=TUNERS[name]())
    tree = to_tree(config)
    assert tree["tuner"]["name"] == name
    assert from_tree(tree) == config


@settings(deadline=None)
@given(st.recursive(st.text() | st.floats(allow_nan=False) | st.none(), st.lists, max_leaves=4))
def test_texts_and_numbers_come_back_as_they_were(tree) -> None:
    assert parse_yaml(dump_yaml({"key": tree})) == {"key": tree}


def test_yaml_is_one_to_one_with_the_fields() -> None:
    tree = to_tree(RunConfig())
    assert list(tree) == [field.name for field in dataclasses.fields(RunConfig)]
    assert list(tree["train"]) == [field.name for field in dataclasses.fields(TrainConfig)]
    assert from_yaml("{}") == RunConfig()
    assert from_yaml("seed: 3\ntrain: {steps: 7}") == RunConfig(seed=3, train=TrainConfig(steps=7))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", r"unknown key 'trian'; did you mean 'train'\?"),
        ("train: {stepz: 3}", r"unknown key 'train.stepz'; did you mean 'steps'\?"),
        ("train: {steps: '3'}", "train.steps: a whole number, not '3'"),
        ("train: {steps: true}", "train.steps: a whole number, not True"),
        ("train: {steps: 0}", "train: steps: 1 or more, not 0"),
        ("train: {dropout: 1}", "train.dropout: true or false, not 1"),
        ("train: {epochs: soon}", "train.epochs: a number, not 'soon'"),
        ("train: {precision: bf17}", "train.precision: unknown 'bf17'; did you mean 'bf16'"),
        ("train: {patience: 2}\nseed: x", "seed: a whole number, not 'x'"),
        ("train: [1]", r"train: keys and values, not \[1\]"),
        ("tuner: {share: 0.1}", "missing key 'tuner.name'"),
        ("tuner: {name: diff_prunning}", "unknown 'diff_prunning'; did you mean 'diff_pruning'"),
        ("tuner: {name: random_mask, density: 1}", "unknown key 'tuner.density'"),
        ("tuner: {name: random_mask, share: 2.0}", "tuner: share"),
        ("tuner: {name: diff_pruning, groups: tensors}", "tuner.groups: unknown 'tensors'"),
        ("step: {name: plain_sum, betas: [0.9]}", r"step.betas: a list of 2, not \[0.9\]"),
        ("exclude: pooler.*", r"exclude: a list, not 'pooler\.\*'"),
        ("targets: [3]", r"targets\[0\]: text, not 3"),
        ("seed: 1\nseed: 2", "'seed' is written twice"),
        ("seed: 1\ntrain: [", r"line 2, column 9: not valid YAML: while parsing a flow node, "),
        ("seed: 1\n\nseed: 2", "line 3, column 1: key 'seed' is written twice"),
        ("[1]: 2", r"line 1, column 1: a key is text, not \[1\]"),
        ("seed: 1\nout: a\0b", r"line 2: not valid YAML: a character that YAML has not, '\\x00'"),
        ("out: 2024-99-99", "not valid YAML: month must be in 1..12; write texts in quotes"),
        ("", "it holds nothing; `graftwork adapt --print-config > run.yaml` writes"),
        ("# seed: 3", "it holds nothing"),
        ("- 1", "RunConfig: keys and values"),
    ],
)
def test_bad_yaml_names_the_key_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_yaml(text)
    assert "unicode string" not in str(caught.value)


def test_numbers_without_a_dot_are_numbers() -> None:
    config = from_yaml("tuner: {name: full, values_lr: 1e-4, head_lr: 1}")
    assert config.tuner == Full(values_lr=1e-4, head_lr=1.0)


def test_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(RunConfig(seed=4)), encoding="utf-8")
    assert from_yaml(path) == RunConfig(seed=4)
    with pytest.raises(ConfigError, match="cannot read"):
        from_yaml(tmp_path / "absent.yaml")


def test_functions_have_no_place_in_a_file() -> None:
    config = RunConfig(tuner=DiffPruning(groups=lambda name: name))
    with pytest.raises(ConfigError, match=r"tuner\.groups: a function cannot be written"):
        to_yaml(config)


def test_missing_key_and_paths() -> None:
    @dataclasses.dataclass(frozen=True)
    class Needs:
        path: Path
        count: int = 1

    # local classes are invisible to get_type_hints, so give real annotations
    Needs.__annotations__ = {"path": Path, "count": int}
    with pytest.raises(ConfigError, match="missing key 'path'"):
        from_plain(Needs, {}, {})
    assert from_plain(Needs, to_plain(Needs(Path("a")), {}), {}) == Needs(Path("a"))


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 0},
        {"accumulate": 0},
        {"eval_every": -1},
        {"epochs": math.inf},
        {"learning_rates": {"gates": {"values": 0.0}}},
    ],
)
def test_impossible_training_values(values) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig(**values)


@given(st.integers(1, 10_000), st.lists(st.floats(0.001, 1.0), min_size=1, max_size=5))
def test_stages_share_the_budget_exactly(total: int, weights: list[float]) -> None:
    shares = [w / sum(weights) for w in weights]
    if total < len(shares):
        with pytest.raises(ConfigError, match="fewer than"):
            share_steps(total, shares)
        return
    parts = share_steps(total, shares)
    assert sum(parts) == total
    assert min(parts) >= 1
    floor = [max(1, math.floor(total * share)) for share in shares]
    if sum(floor) <= total:
        assert all(f <= p <= f + 1 for p, f in zip(parts, floor, strict=True))


def test_epochs_take_the_place_of_steps() -> None:
    stream = make_toy_task(make_base(), batch_size=8, rows=100).streams["train"]
    stages = [Stage("only", 1.0, {})]
    assert stage_steps(TrainConfig(epochs=2.0), stages, stream) == [25]
    assert stage_steps(TrainConfig(epochs=2.0, accumulate=5), stages, stream) == [5]
    endless = GeneratorStream(make=lambda index: stream.draw(), name="train", digest="endless")
    with pytest.raises(ConfigError, match="no end; set steps"):
        stage_steps(TrainConfig(epochs=1.0), stages, endless)
