"""Runs over a base that is held in 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from graftwork._errors import FingerprintError
from graftwork.bases import Base, load
from graftwork.deltas import load as load_delta
from graftwork.deltas import view
from graftwork.training import (
    BaseOptions,
    LogConfig,
    RunConfig,
    TrainConfig,
    adapt,
    from_yaml,
    start,
    step_memory,
    to_yaml,
)
from graftwork.training._adapt import load_base
from graftwork.tuning import BitFit, LoRA, RandomMask, Tuner
from tests.integrations.toys import make_base as make_classifier
from tests.training.toys import Net, make_toy_task

pytest.importorskip("torchao.quantization", reason="needs the extra 'int8'")


def eight() -> Base:
    torch.manual_seed(11)
    return load(Net(0.0), quantise="int8")


def test_the_option_is_part_of_a_run():
    config = RunConfig(base_options=BaseOptions(quantise="int8"))
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize("tuner", [LoRA(rank=2), RandomMask(share=0.3), BitFit()])
def test_adapt_reaches_the_matrices_and_leaves_them(tuner: Tuner, tmp_path: Path):
    base = eight()
    base.prints(base.names.pieces)
    config = RunConfig(
        base="toy",
        tuner=tuner,
        train=TrainConfig(steps=40, save_every=20, log_every=1),
        log=LogConfig(progress="silent"),
        out=str(tmp_path / "run"),
    )
    result = adapt(config, base=base, task=make_toy_task(base))
    base.verify()
    assert result.summary["unreached"] == ["pooler.weight", "pooler.bias"]
    delta = load_delta(tmp_path / "run" / "delta.safetensors")
    assert delta.fingerprint.processing["quantise"] == "int8"
    losses = [row["loss"] for row in result.history if "loss" in row]
    assert sum(losses[-5:]) < sum(losses[:5])
    torch.manual_seed(11)
    with pytest.raises(FingerprintError, match="quantise='int8'"):
        view(load(Net(0.0)), delta)


def test_memory_counts_no_copy_of_a_matrix():
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Linear(6 if i == 0 else 256, 256) for i in range(4)))
    held = {}
    for kind in (None, "int8"):
        base = load(deep, quantise=kind)
        task = make_toy_task(base)
        held[kind] = step_memory(start(base, task, LoRA(rank=1)), task)
    assert held["int8"] <= held[None]


def test_the_base_of_a_run_is_loaded_so(tmp_path: Path):
    make_classifier().model.bert.save_pretrained(tmp_path / "tiny")
    options = BaseOptions(device="cpu", quantise="int8")
    base = load_base(RunConfig(base=str(tmp_path / "tiny"), base_options=options))
    assert base.quantised
