"""The entry point: the table of commands, exit codes, one red line and no traceback."""

import json
import re
import subprocess
import sys

import pytest

from graftwork._errors import ConfigError
from graftwork.cli import _main, main


def test_help_lists_every_command_with_an_example(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in _main.COMMANDS)
    assert "example: graftwork adapt " in text


def test_no_words_is_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: graftwork COMMAND")


def test_unknown_command_says_the_closest(capsys):
    assert main(["adpt"]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.startswith("graftwork: unknown command 'adpt'; did you mean 'adapt'?")
    assert caught.err.count("\n") == 1


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("graftwork 0.")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("wrong\nvalue"), 2, "graftwork: wrong; value\n"),
        (KeyboardInterrupt(), 130, "graftwork: stopped by Ctrl-C\n"),
        (
            ValueError("oops"),
            1,
            "graftwork: a defect of graftwork: ValueError: oops; --debug shows",
        ),
        (SystemExit(0), 0, ""),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, text):
    def fail(words):
        raise error

    monkeypatch.setattr(_main, "_dispatch", fail)
    assert main(["claims"]) == code
    caught = capsys.readouterr().err
    assert caught.startswith(text)
    assert "Traceback" not in caught


def test_debug_shows_the_traceback_and_keeps_the_code(capsys):
    assert main(["nothing", "--debug"]) == 2
    caught = capsys.readouterr().err
    assert "Traceback" in caught
    assert "graftwork: unknown command 'nothing'" in caught


@pytest.mark.parametrize("command", _main.COMMANDS)
def test_each_command_has_help_with_an_example_and_json(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example: graftwork {command}" in text
    assert "--json" in text


@pytest.mark.parametrize("words", [*([name] for name in _main.COMMANDS), ["claims", "run"]])
def test_help_is_laid_out_in_whole_lines(monkeypatch, capsys, words):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"^│ +[a-z]+ +│$", text, re.MULTILINE), "a word alone on its line"
    assert text.count("example: ") == len(re.findall(r"^example: ", text, re.MULTILINE)) == 1
    assert "\n\n\n" not in text
    assert not re.search(r"^│ +│$", text, re.MULTILINE), "an empty line"
    assert not re.search(r"\(default: ('')?\)", text)


@pytest.mark.parametrize("command", _main.COMMANDS)
def test_each_command_refuses_an_unknown_flag_with_the_closest(capsys, command):
    assert main([command, "--jsom"]) == 2
    caught = capsys.readouterr()
    assert "'--jsom'; did you mean '--json'?" in caught.err
    assert caught.out == ""


def test_help_imports_nothing_heavy():
    code = (
        "import sys, json; from graftwork.cli import main; main(['--help']); "
        "heavy = ('torch', 'transformers', 'tyro', 'rich'); "
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout.splitlines()[-1]) == []


def test_module_runs_as_the_command():
    asked = subprocess.run(
        [sys.executable, "-m", "graftwork", "nothing"], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 2
    assert "unknown command 'nothing'" in asked.stderr
