"""A folder of pictures from `adapt` over `evaluate` to `predict`, on a tiny vision transformer."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from graftwork.cli import main

ROWS = 24


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> str:
    """Folder of a vision transformer of two layers of width 16, for pictures of 16 x 16."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("bases") / "vit"
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder of noisy pictures, some redder, some bluer."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    noise = np.random.default_rng(0)
    for label, channel in (("blue", 2), ("red", 0)):
        (folder / label).mkdir(parents=True)
        for i in range(ROWS // 2):
            values = noise.integers(0, 90, (20, 18, 3), dtype=np.uint8)
            values[..., channel] += 150
            Image.fromarray(values).save(folder / label / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, vision, pictures):
    """Folder of a finished run over the pictures."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    words = ["adapt", "--base", vision, "--data", str(pictures), "--image-size", "16", "16"]
    words += ["--mean", "0.5", "--std", "0.5", "--tuner", "random_mask", "--share", "0.05"]
    words += ["--steps", "60", "--batch-size", "8", "--eval-share", "0.25", "--seed", "1"]
    assert main([*words, "--progress", "silent", "--out", str(folder)]) == 0
    return folder


def test_evaluate(run, pictures, capsys):
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["accuracy"] == 1.0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(pictures), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["rows"] == ROWS
    assert result["metrics"]["accuracy"] == 1.0


def test_predict_names_the_files(run, pictures, tmp_path, capsys):
    out = tmp_path / "predictions.jsonl"
    assert main(["predict", str(run), "--data", str(pictures), "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["inputs"]["file"] for line in lines[:2]] == ["blue/00.png", "blue/01.png"]
    assert all(line["inputs"]["file"].startswith(f"{line['label']}/") for line in lines)
    assert main(["predict", str(run), "--data", str(pictures)]) == 0
    assert "blue/00.png" in capsys.readouterr().out


def test_predict_needs_no_classes(run, pictures, capsys):
    assert main(["predict", str(run), "--data", str(pictures / "red"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [p["inputs"] for p in found][:2] == [{"file": "00.png"}, {"file": "01.png"}]
    assert {p["label"] for p in found} == {"red"}


def test_predict_from_a_table_of_paths(run, pictures, tmp_path, capsys):
    table = tmp_path / "rows.csv"
    table.write_text(f"image\n{pictures}/red/03.png\n{pictures}/blue/03.png\n")
    assert main(["predict", str(run), "--data", str(table), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [p["label"] for p in found] == ["red", "blue"]


def test_what_does_not_fit_is_named(run, vision, base, pictures, tmp_path, capsys):
    start = ["adapt", "--data", str(pictures), "--out", str(tmp_path / "run")]
    assert main([*start, "--base", base]) == 2
    assert "the base reads text, but pictures holds pictures" in capsys.readouterr().err
    assert main([*start, "--base", vision]) == 2
    error = capsys.readouterr().err
    assert "resized to 224 x 224: set image_size (--image-size) to the base's" in error
    assert main(["predict", str(run), "--text", "red"]) == 2
    assert "the delta reads arrays or pictures" in capsys.readouterr().err
