"""What the commands share: strict flags, one JSON document, consoles, files that must exist."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import math
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from graftwork._errors import ConfigError, InputError, closest
from graftwork.cli._help import noted_fields

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


def parse(
    kind: type[T],
    words: Sequence[str],
    *,
    prog: str,
    description: str,
    default: T | None = None,
    registry: Any = None,
) -> T:
    """Return `kind`, a dataclass, filled from the flags in `words`.

    Raises:
        ConfigError: a flag that does not exist, with the closest one; a value that cannot be
            read; a required flag that is missing.
        SystemExit: code 0 after `--help`.
    """
    import tyro

    known = sorted(flags_of(kind))
    if not {"-h", "--help"} & set(words):
        for word in words:
            flag = word.partition("=")[0]
            if word.startswith("--") and flag.replace("_", "-") not in known:
                raise unknown_flag(flag, known, prog)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), noted_fields():
            return tyro.cli(
                kind,
                args=words,
                prog=prog,
                description=description,
                config=(tyro.conf.FlagCreatePairsOff,),
                default=tyro.MISSING_NONPROP if default is None else default,
                registry=registry,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(f"{_plain(complaint.getvalue())} (see {prog} --help)") from None


def unknown_flag(flag: str, known: Sequence[str], prog: str) -> ConfigError:
    """Return the error for a flag that does not exist."""
    near = closest_flag(flag, known)
    hint = "" if near is None else f"; did you mean {near!r}?"
    return ConfigError(f"unknown flag {flag!r}{hint} (see {prog} --help)")


def closest_flag(flag: str, known: Iterable[str]) -> str | None:
    """Return the known flag whose name is nearest to that of `flag`, or None where none is near.

    Dashes and groups would make any two flags alike, so the names behind them are compared.

    Example:
        >>> closest_flag("--jsn", ["--json", "--out"])
        '--json'
        >>> closest_flag("--tuner.colour", ["--tuner.low", "--tuner.head-lr"]) is None
        True
    """

    def nearness(other: str) -> tuple[float, float]:
        return _alike(_leaf(flag), _leaf(other)), _alike(flag, other)

    best = max(known, key=nearness, default=None)
    # Stricter than for other names: among a hundred flags, chance alone makes two much alike.
    return best if best is not None and nearness(best)[0] >= 0.75 else None


def flags_of(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield every flag of a dataclass of flags: `--data`, `--task.data`.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Flags:
        ...     max_rows: int = 3
        ...     header: bool = True
        >>> list(flags_of(Flags))
        ['--max-rows', '--no-header']
    """
    import tyro

    hints = typing.get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        extras = hint.__metadata__ if typing.get_origin(hint) is typing.Annotated else ()
        inner = hint.__origin__ if extras else hint
        if is_dataclass(inner) and isinstance(inner, type):
            yield from flags_of(inner, f"{prefix}{field.name}.")
        elif tyro.conf.Positional not in extras:
            named = [e.name for e in extras if getattr(e, "name", None)]
            off = (
                "no-" if inner is bool and field.default is True and not (prefix or extras) else ""
            )
            yield f"--{prefix}{off}{named[0] if named else field.name}".replace("_", "-")


def emit(document: Any) -> None:
    """Print `document` as the one JSON document on stdout; NaN and infinities become null."""
    print(json.dumps(_finite(document), indent=1, allow_nan=False, default=str))


def out() -> Console:
    """Return the console for results (stdout)."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 120
    return Console(file=sys.stdout, highlight=False, width=wide)


def err() -> Console:
    """Return the console for progress (stderr), so that stdout stays machine-readable."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)


def existing(path: Path, what: str) -> Path:
    """Return `path` if it is a file or folder.

    Raises:
        InputError: it does not exist; names the closest neighbour.
    """
    if path.exists():
        return path
    folder = path.parent
    if not folder.is_dir():
        raise InputError(
            f"{what} {str(path)!r} does not exist (there is no folder {str(folder)!r})"
        )
    near = closest(path.name, (p.name for p in folder.iterdir()))
    raise InputError(f"{what} {str(path)!r} does not exist{near}")


def new_file(path: Path) -> Path:
    """Return `path` if a file can be written there.

    Raises:
        InputError: it is a folder, or its own folder does not exist.
    """
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name a file, such as {path}/delta.safetensors")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {str(path.parent)!r}")
    return path


def size(count: float) -> str:
    """Return a number of bytes for people.

    Example:
        >>> size(812), size(53_412), size(91_000_000)
        ('812 B', '53.4 kB', '91.0 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def share(part: float) -> str:
    """Return a share as percent with three significant digits.

    Example:
        >>> share(0.005), share(0.00012), share(1.0)
        ('0.5 %', '0.012 %', '100 %')
    """
    return f"{float(f'{100 * part:.3g}'):g} %"


def bar(part: float, width: int = 24) -> str:
    """Return a text bar that is `part` of `width` long.

    Example:
        >>> bar(0.5, 8)
        '████    '
    """
    eighths = round(max(0.0, min(part, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")).ljust(width)


def _leaf(flag: str) -> str:
    return flag.lstrip("-").rpartition(".")[2].lower()


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _plain(box: str) -> str:
    """Return the first section of tyro's error box as one line."""
    lines = [re.sub(r"[╭╮╰╯│]|─{2,}", "", line).strip() for line in box.splitlines()]
    body = lines[1:]
    first = body[: body.index("")] if "" in body else body
    text = " ".join(first) or " ".join(body)
    return text.rstrip(". ") or "the flags cannot be read"


def _finite(tree: Any) -> Any:
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    if isinstance(tree, Mapping):
        return {str(k): _finite(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(v) for v in tree]
    return tree
