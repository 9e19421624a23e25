"""`graftwork adapt`: flags and YAML 1:1 with the config, the run's folder, what may go wrong."""

import contextlib
import json
import resource

import pytest

from graftwork.cli import main
from graftwork.cli.adapt import read
from graftwork.training import RunConfig, TrainConfig, from_yaml
from graftwork.tuning import TUNERS, DiffPruning, Full

KEYS = {
    *("folder", "delta", "report", "bytes", "changed", "entries", "trained", "steps", "seconds"),
    *("next", "metrics"),
}


def test_run_folder_and_report(run):
    names = {p.name for p in run.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "delta.safetensors", "result.json"}
    html = (run / "report.html").read_text()
    for shown in ("Held-out metrics", "encoder.layer", "positions", "graftwork predict", "fixed"):
        assert shown in html


def test_json_has_the_stated_keys_and_progress_goes_to_stderr(tmp_path, base, reviews, capsys):
    words = ["adapt", "--base", base, "--data", reviews, "--steps", "2", "--json"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    caught = capsys.readouterr()
    document = json.loads(caught.out)
    assert set(document) == KEYS
    assert document["trained"]["values"] == document["changed"]
    assert document["bytes"] == (tmp_path / "run/delta.safetensors").stat().st_size
    assert "fixed mask" in caught.err


def test_people_see_a_table_paths_and_the_next_command(tmp_path, base, reviews, capsys):
    words = ["adapt", "--base", base, "--data", reviews, "--tuner", "head", "--steps", "2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    for shown in ("accuracy", "trained head", "report.html", "graftwork predict", '"SENTENCE"'):
        assert shown in text


@pytest.mark.parametrize("tuner", TUNERS)
def test_printed_config_is_read_back_as_the_same_run(tuner, tmp_path, capsys):
    words = [
        "--tuner",
        tuner,
        "--steps",
        "77",
        "--seed",
        "3",
        "--targets",
        "encoder.*",
        "--out",
        "a",
    ]
    assert main(["adapt", *words, "--print-config"]) == 0
    text = capsys.readouterr().out
    path = tmp_path / "run.yaml"
    path.write_text(text)
    config = from_yaml(path)
    assert config == read(words)[0]
    assert type(config.tuner) is TUNERS[tuner]
    assert read(["--config", str(path)])[0] == config
    assert "# Updates over all stages together" in text


def test_flags_override_the_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "tuner: {name: diff_pruning, share: 0.01, hold: 0.3}\ntrain: {steps: 40}\n"
        "task: {header: false, columns: {sentence: '0', label: '1'}}\n"
    )
    config, *_ = read([f"--config={path}", "--tuner.share", "0.02", "--task.header", "True"])
    assert config.tuner == DiffPruning(share=0.02, hold=0.3)
    assert config.train.steps == 40
    assert config.task.header is True
    assert config.task.columns == {"sentence": "0", "label": "1"}
    same, *_ = read(["--config", str(path), "--tuner", "diff_pruning"])
    assert same.tuner == DiffPruning(share=0.01, hold=0.3)
    other, *_ = read(["--config", str(path), "--tuner", "full", "--head-lr", "1e-4"])
    assert other.tuner == Full(head_lr=1e-4)


def test_every_field_is_a_flag():
    words = ["--tuner", "diff-pruning", "--groups", "neuron", "--gates", "a.*", "b.*"]
    words += ["--columns", "sentence", "text", "--keep_best", "True", "--no-such"]
    config, *_ = read(words[:-1])
    assert config.tuner == DiffPruning(groups="neuron", gates=("a.*", "b.*"))
    assert config.task.columns == {"sentence": "text"}
    assert config.train.keep_best
    assert read(["--tuner", "diff_pruning", "--groups", "None"])[0].tuner == DiffPruning(
        groups=None
    )
    rates = ["--learning-rates", "fixed mask", "values", "0.1", "head", "0.2"]
    assert read(rates)[0].train.learning_rates == {"fixed mask": {"values": 0.1, "head": 0.2}}


def test_without_words_it_is_the_default_config():
    assert read([])[0] == RunConfig()
    assert read(["--train.steps", "7"])[0] == RunConfig(train=TrainConfig(steps=7))


def test_resume_returns_a_finished_run(run, capsys):
    before = (run / "delta.safetensors").read_bytes()
    assert main(["adapt", "--config", str(run / "config.yaml"), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 30
    assert (run / "delta.safetensors").read_bytes() == before


def test_a_folder_in_use_is_refused(run, capsys):
    assert main(["adapt", "--config", str(run / "config.yaml")]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--tuner", "diff_prunning"],
            "unknown tuner 'diff_prunning'; did you mean 'diff_pruning'?",
        ),
        (["--step", "plain"], "unknown step 'plain'; did you mean 'plain_sum'?"),
        (["--stepss", "3"], "unknown flag '--stepss'; did you mean '--steps'?"),
        (["--max-length", "3"], "--base-options.max-length or --task.max-length: write it in full"),
        (["--tuner", "full", "--share", "0.1"], "--share: the tuner 'full' has no share; these"),
        (["--tuner=head", "--tuner.share=1"], "these have one: random_mask, magnitude, gradient"),
        (["--steps", "many"], "--train.steps"),
        (["--steps", "0"], "steps: 1 or more, not 0"),
        (["--task.call", "pear"], "invalid choice 'pear'"),
        (["--groups", "nuron", "--tuner", "diff_pruning"], "nuron"),
        (["--metrics", "acuracy"], "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        (["--config", "nowhere.yaml"], "configuration 'nowhere.yaml' does not exist"),
    ],
)
def test_wrong_flags(capsys, words, text):
    assert main(["adapt", *words]) == 2
    caught = capsys.readouterr()
    assert text in caught.err
    assert caught.err.count("\n") == 1
    assert "Traceback" not in caught.err


TYPOS = """jsn json, exclued exclude, sed seed, stepss steps, bacth-size batch-size, lable label,
evl-every eval-every, print-cfg print-config, learning_rate learning-rates, warm-up warmup,
precison precision, max-lenght max-length, tsk.data task.data, train.stpes train.steps,
tuner.shre tuner.share"""
UNRELATED = """verbose gpu workers kernel colour model optimizer quiet output yes parallel wandb
version temperature threads tuner.colour train.foo"""


def complaint(capsys, flag):
    assert main(["adapt", flag, "1"]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("typo", "meant"), [pair.split() for pair in TYPOS.split(",")])
def test_typos_in_flags_are_recognised(capsys, typo, meant):
    assert f"; did you mean '--{meant}'?" in complaint(capsys, f"--{typo}")


@pytest.mark.parametrize("name", UNRELATED.split())
def test_unrelated_flags_get_no_suggestion(capsys, name):
    text = complaint(capsys, f"--{name}")
    assert f"unknown flag '--{name}' (see graftwork adapt --help)" in text


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("train: {stpes: 3}", "unknown key 'train.stpes'; did you mean 'steps'?"),
        ("tuner: {name: random_musk}", "did you mean 'random_mask'?"),
        ("tuner: {share: 0.1}", "missing key 'tuner.name'"),
        ("train: {steps: many}", "train.steps: a whole number, not 'many'"),
        ("seed: 1\nseed: 2", "written twice"),
        ("a: 1\nb: [", "run.yaml: line 2, column 5: not valid YAML"),
        ("", "run.yaml: it holds nothing; `graftwork adapt --print-config > run.yaml`"),
        ("sentence,label\n" + "a film,good\n" * 99, "keys and values, not 'sentence,label"),
    ],
)
def test_wrong_yaml(tmp_path, capsys, yaml, text):
    path = tmp_path / "run.yaml"
    path.write_text(yaml)
    assert main(["adapt", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert str(path) in error
    assert len(error) < len(str(path)) + 400


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--inputs", "sentense"], "did you mean 'sentence'?"),
        (["--label", "lable"], "did you mean 'label'?"),
        (["--targets", "encodr.*"], "unknown parameter pattern 'encodr.*'"),
        (["--data", "revews.csv"], "revews.csv"),
    ],
)
def test_wrong_data(tmp_path, base, reviews, capsys, words, text):
    start = ["adapt", "--base", base, "--data", reviews, "--out", str(tmp_path / "run")]
    assert main([*start, *words]) == 2
    assert text in capsys.readouterr().err


@contextlib.contextmanager
def files_of_at_most(count):
    """Let writes beyond `count` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("bytes_left", "words", "file"),
    [
        (100, [], "config.yaml"),
        (2_000, ["--log-every", "1", "--save-every", "0"], "metrics.jsonl"),
        (10_000, ["--save-every", "4"], "checkpoints/step-00000004"),
        (4_000, ["--save-every", "0"], "delta.safetensors"),
        (10_000, ["--save-every", "0"], "report.html"),
    ],
)
def test_a_full_disk_is_a_clear_error_and_resume_mends_it(
    tmp_path, base, reviews, capsys, bytes_left, words, file
):
    start = ["adapt", "--base", base, "--data", reviews, "--share", "0.05", "--steps", "20", *words]
    out = tmp_path / "run"
    with files_of_at_most(bytes_left):
        assert main([*start, "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write {out / file}" in error
    assert "free space or choose another folder" in error
    assert not list(out.glob("**/.part-*"))
    assert (out / "delta.safetensors").exists() == (file == "report.html")
    assert main([*start, "--out", str(out), "--resume"]) == 0
    assert main([*start, "--out", str(tmp_path / "whole")]) == 0
    whole, mended = (f / "delta.safetensors" for f in (tmp_path / "whole", out))
    assert mended.read_bytes() == whole.read_bytes()
    assert (out / "report.html").exists()
