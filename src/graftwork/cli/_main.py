"""Entry point: finds the command, runs it, and turns what went wrong into an exit code.

Exit codes: 0 done; 1 a defect of graftwork; 2 the user can mend it (a `GraftworkError`);
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from graftwork._errors import GraftworkError, UnknownNameError

EXIT_DEFECT, EXIT_USER, EXIT_INTERRUPT = 1, 2, 130


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the table of commands.

    Attributes:
        module: module with `main(arguments) -> None`, imported only when the command is called.
        summary: one line for `graftwork --help`.
    """

    module: str
    summary: str


COMMANDS = {
    "demo": Command(
        "graftwork.cli.demo", "adapt a real pretrained encoder in a few minutes, offline"
    ),
    "adapt": Command("graftwork.cli.adapt", "learn a delta for your data"),
    "compare": Command("graftwork.cli.compare", "measure several tuners within a budget of bytes"),
    "pretrain": Command("graftwork.cli.pretrain", "make a base of molecules from SMILES strings"),
    "policy": Command("graftwork.cli.policy", "learn a control policy from logged transitions"),
    "evaluate": Command("graftwork.cli.evaluate", "measure a delta on labelled data"),
    "predict": Command("graftwork.cli.predict", "use a delta on texts or a file"),
    "inspect": Command("graftwork.cli.inspect", "what a delta changes and where its bytes go"),
    "diff": Command("graftwork.cli.diff", "compare two deltas"),
    "diagnose": Command("graftwork.cli.diagnose", "analyse what low-rank terms learnt"),
    "rebase": Command("graftwork.cli.rebase", "move a delta to a new version of its base"),
    "merge": Command("graftwork.cli.merge", "merge deltas of one base into one"),
    "compress": Command("graftwork.cli.compress", "make a delta smaller, and say what it lost"),
    "extract": Command(
        "graftwork.cli.extract", "take a delta of a fine-tuned model within a budget of bytes"
    ),
    "import": Command(
        "graftwork.cli.import_delta", "make a delta of an adapter of PEFT, AdapterHub or loralib"
    ),
    "export": Command(
        "graftwork.cli.export_delta", "write a delta as a PEFT adapter, a merged model or a card"
    ),
    "claims": Command("graftwork.cli.claims", "list or run the claims of the papers"),
}

EXAMPLE = (
    "graftwork adapt --base minilm --task.data reviews.csv --tuner diff_pruning --out runs/reviews"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Arguments:
        arguments: words after the program's name; by default those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        _dispatch(words)
    except GraftworkError as error:
        return _fail(EXIT_USER, str(error), debug)
    except KeyboardInterrupt as stop:
        return _fail(EXIT_INTERRUPT, str(stop) or "stopped by Ctrl-C", debug)
    except BrokenPipeError:
        # the reader of our output went away (`| head`); silence Python's own flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_USER
    except Exception as error:  # noqa: BLE001 the last resort: a clear line in place of a traceback
        text = f"a defect of graftwork: {type(error).__name__}: {error}; --debug shows where"
        return _fail(EXIT_DEFECT, text, debug)
    return 0


def usage() -> str:
    """Return the text of `graftwork --help`."""
    wide = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{wide}}  {c.summary}" for name, c in COMMANDS.items())
    return (
        "usage: graftwork COMMAND [flags]\n\n"
        "Adapt one frozen pretrained base to many tasks, each by a delta of kilobytes.\n\n"
        f"{rows}\n\n"
        "graftwork COMMAND --help   flags of a command, with an example\n"
        "graftwork --version        the version\n"
        "--json                     for every command: one JSON document on stdout\n"
        "--debug                    for every command: the traceback of an error\n\n"
        f"example: {EXAMPLE}\n"
    )


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return
    if words[0] == "--version":
        from graftwork import __version__

        print(f"graftwork {__version__}")
        return
    if words[0] not in COMMANDS:
        raise UnknownNameError("command", words[0], COMMANDS)
    importlib.import_module(COMMANDS[words[0]].module).main(words[1:])


def _fail(code: int, message: str, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    line = "; ".join(" ".join(part.split()) for part in message.splitlines() if part.strip())
    red, plain = ("\x1b[1;31m", "\x1b[0m") if _coloured() else ("", "")
    print(f"{red}graftwork: {line}{plain}", file=sys.stderr)
    return code


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ
