"""Command line: one module a subcommand, listed in the table of `_main.py`.

Nothing heavy is imported before the command that needs it, so `graftwork --help` is quick.
"""

from graftwork.cli._main import main as main

__all__ = ["main"]
