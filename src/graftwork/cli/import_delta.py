"""`graftwork import`: an adapter of another library as a delta."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from graftwork._errors import ConfigError
from graftwork.cli._foreign import detect, fetched, read_signature
from graftwork.cli._shared import emit, new_file, out, parse, size

if TYPE_CHECKING:
    from graftwork.bases import Base
    from graftwork.deltas import Delta

HELP = """Import an adapter of PEFT (LoRA, DoRA, IA3), of AdapterHub (LoRA) or of loralib.

No such file says which base it was trained on: the delta is stamped "asserted by the user".

example: graftwork import my-lora --base minilm --out my-lora.safetensors"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork import`."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the adapter, file of a loralib checkpoint, or id of a hub repository."""
    base: str
    """The base it was trained on: minilm, a Hugging Face id, or a folder."""
    out: Path | None = None
    """Where the delta goes; default: the adapter's name with .safetensors, in this folder."""
    format: Literal["auto", "peft", "adapterhub", "loralib"] = "auto"
    """Format of the files; default: what they say."""
    stored: Literal["float16", "bfloat16", "float32", "int8"] | None = None
    """Type of the values; default: as in the file, so that no bit changes."""
    alpha: float | None = None
    """loralib: the alpha of the training, which no checkpoint states; default: none."""
    fused: str | None = None
    """loralib: which of the fused q, k, v were adapted, such as qv; default: none."""
    head_activation: Literal["tanh", "relu", "gelu"] | None = None
    """What lies inside a head of two layers, which no file states; default: none."""
    signature: Path | None = None
    """JSON of a signature, so that predict and evaluate work; default: none."""
    unpickle: bool = False
    """Read weights that are a pickle, once, as tensors only (weights_only)."""
    json: bool = False
    """Print one JSON document: {delta, base, format, bytes, tensors, ports, asserted, next}."""


def main(words: list[str]) -> None:
    """Run `graftwork import`."""
    flags = parse(Flags, words, prog="graftwork import", description=HELP)
    from graftwork import bases, deltas

    source = fetched(flags.source)
    kind = detect(source) if flags.format == "auto" else flags.format
    target = new_file(flags.out or Path(f"{Path(flags.source).stem}.safetensors"))
    base = bases.load(flags.base)
    # a file says what a base is called, not where it lay
    named = Path(flags.base).name if Path(flags.base).exists() else flags.base
    delta = _IMPORTERS[kind](source, base, flags)
    delta = dataclasses.replace(delta, provenance={**delta.provenance, "base": named})
    written = deltas.save(delta, target)
    follow = f"graftwork inspect {target}"
    if flags.json:
        emit(
            {
                "delta": str(target),
                "base": flags.base,
                "format": kind,
                "bytes": written,
                "tensors": len(delta.updates),
                "ports": sorted(delta.ports),
                "asserted": delta.fingerprint.asserted,
                "next": follow,
            }
        )
        return
    console = out()
    ports = "".join(f", port {name}" for name in delta.ports)
    console.print(
        f"{target}: {size(written)}, {len(delta.updates)} parameters{ports}, from {kind}",
        markup=False,
    )
    console.print(f"that it belongs to {flags.base} is asserted by you", markup=False)
    console.print(f"next: {follow}", style="dim", markup=False)


def _peft(source: Path, base: Base, flags: Flags) -> Delta:
    from graftwork.formats import import_peft

    return import_peft(source, base, _options(flags))


def _adapterhub(source: Path, base: Base, flags: Flags) -> Delta:
    from graftwork.formats import import_adapterhub

    return import_adapterhub(source, base, _options(flags))


def _loralib(source: Path, base: Base, flags: Flags) -> Delta:
    from graftwork.formats import LoralibOptions, import_loralib

    if flags.alpha is None:
        raise ConfigError(
            "a loralib checkpoint does not state its alpha: say it with --alpha (16 in the "
            "authors' MNLI script)"
        )
    options = LoralibOptions(
        alpha=flags.alpha,
        enabled=None if flags.fused is None else tuple(c in flags.fused for c in "qkv"),
        stored=flags.stored,
        head_activation=flags.head_activation,
        signature=read_signature(flags.signature),
    )
    return import_loralib(source, base, options)


def _options(flags: Flags) -> Any:
    from graftwork.formats import ImportOptions

    return ImportOptions(
        stored=flags.stored,
        head_activation=flags.head_activation,
        signature=read_signature(flags.signature),
        unpickle=flags.unpickle,
    )


_IMPORTERS: Mapping[str, Callable[[Path, Base, Flags], Delta]] = {
    "peft": _peft,
    "adapterhub": _adapterhub,
    "loralib": _loralib,
}
"""Format -> what reads it."""
