"""`graftwork export`: a delta in the form that other libraries read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from graftwork._errors import ConfigError, InputError
from graftwork.cli._data import load_base, load_delta
from graftwork.cli._shared import emit, out, parse, size

if TYPE_CHECKING:
    from graftwork.deltas import Delta

HELP = """Export a delta: as a PEFT adapter, as a merged transformers folder, as a card, to the hub.

example: graftwork export runs/reviews --to merged --out reviews-merged"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork export`."""

    delta: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DELTA")]
    """File of the delta, or folder of its run."""
    to: Literal["peft", "merged", "card", "hub"]
    """The form: an adapter for PEFT, a whole model for transformers, a model card, the hub."""
    out: Path | None = None
    """New folder, or file of the card; default: none."""
    base: str | None = None
    """Where the base is loaded from; default: what the delta says."""
    task_type: str | None = None
    """PEFT's name of the task (SEQ_CLS, CAUSAL_LM, ...), which says what class its users wrap;
    default: as imported, else the base itself."""
    head_activation: Literal["tanh", "relu", "gelu"] | None = None
    """What lies inside the task model's head of two layers; default: none."""
    base_name: str | None = None
    """What users of the export load the base from; default: the name of the base."""
    repo: str | None = None
    """Hub repository, user/name; default: none."""
    public: bool = False
    """Make a new hub repository public."""
    json: bool = False
    """Print one JSON document: {delta, to, out, bytes, exact, error}."""


def main(words: list[str]) -> None:
    """Run `graftwork export`."""
    flags = parse(Flags, words, prog="graftwork export", description=HELP)
    if flags.to == "hub" and flags.repo is None:
        raise ConfigError("name the hub repository with --repo user/name")
    if flags.to != "hub" and flags.out is None:
        raise ConfigError(f"name where the {_FORMS[flags.to]} goes with --out")
    delta = load_delta(flags.delta)
    done = {"delta": str(flags.delta), "to": flags.to, **_EXPORTERS[flags.to](delta, flags)}
    if flags.json:
        emit(done)
        return
    note = f", {size(done['bytes'])}" if "bytes" in done else ""
    out().print(f"{done['out']}{note}", markup=False)
    if done.get("exact") is False:
        out().print(
            f"the base's type rounds the merged values by up to {done['error']:.3g} "
            f"({done['worst']})",
            markup=False,
        )


def _peft(delta: Delta, flags: Flags) -> dict[str, Any]:
    from graftwork.formats import export_peft

    base = load_base(flags.delta, delta, flags.base, "cpu")
    written = export_peft(delta, base, str(flags.out), _options(flags))
    return {"out": str(flags.out), "bytes": written}


def _merged(delta: Delta, flags: Flags) -> dict[str, Any]:
    from graftwork.formats import export_merged

    base = load_base(flags.delta, delta, flags.base, "cpu")
    done = export_merged(delta, base, str(flags.out), _options(flags))
    return {
        "out": str(flags.out),
        "bytes": done.bytes,
        "exact": done.exact,
        "error": done.error,
        "worst": done.worst,
    }


def _card(delta: Delta, flags: Flags) -> dict[str, Any]:
    from graftwork.formats import model_card

    target = Path(str(flags.out))
    if target.is_dir():
        target /= "README.md"
    if not target.parent.is_dir():
        raise InputError(f"--out {target}: there is no folder {str(target.parent)!r}")
    text = model_card(delta, _base_name(delta, flags))
    target.write_text(text, encoding="utf-8")
    return {"out": str(target), "bytes": len(text.encode())}


def _hub(delta: Delta, flags: Flags) -> dict[str, Any]:
    from graftwork.formats import PushOptions, push

    options = PushOptions(base_name=_base_name(delta, flags), private=not flags.public)
    return {"out": push(delta, str(flags.repo), options)}


def _base_name(delta: Delta, flags: Flags) -> str:
    return flags.base_name or flags.base or str(delta.provenance.get("base") or "unknown")


def _options(flags: Flags) -> Any:
    from graftwork.formats import ExportOptions

    return ExportOptions(
        task_type=flags.task_type,
        base_name=flags.base_name,
        head_activation=flags.head_activation,
    )


_FORMS = {"peft": "adapter", "merged": "model", "card": "card"}
_EXPORTERS: Mapping[str, Callable[[Delta, Flags], dict[str, Any]]] = {
    "peft": _peft,
    "merged": _merged,
    "card": _card,
    "hub": _hub,
}
"""Form -> what writes it."""
