"""`graftwork extract`: a delta of a fine-tuned checkpoint within a budget of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from graftwork.cli._shared import emit, existing, new_file, out, parse, share, size

HELP = """Take a delta out of a fine-tuned model: the nearest one within a budget of bytes.

example: graftwork extract tuned-model --base minilm --budget-bytes 100000 --out task.safetensors"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork extract`."""

    tuned: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the fine-tuned model."""
    base: str
    """The base it was tuned from: minilm, a Hugging Face id, or a folder."""
    budget_bytes: int
    """Size to come under."""
    out: Path
    """File of the delta."""
    kind: Literal["sparse", "low_rank"] = "sparse"
    """The largest entries, or the singular directions of most energy."""
    targets: tuple[str, ...] = ("*",)
    """Patterns of the parameters to look at."""
    stored: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """Type of the values."""
    json: bool = False
    """Print one JSON document: {out, bytes, error, tensors, kind, base}."""


def main(words: list[str]) -> None:
    """Run `graftwork extract`."""
    flags = parse(Flags, words, prog="graftwork extract", description=HELP)
    target, folder = new_file(flags.out), existing(flags.tuned, "model")
    from graftwork import bases, deltas

    # a file says what a base is called, not where it lay
    named = Path(flags.base).name if Path(flags.base).exists() else flags.base
    config = deltas.ExtractConfig(
        budget_bytes=flags.budget_bytes,
        kind=flags.kind,
        targets=flags.targets,
        stored=flags.stored,
        base_name=named,
    )
    base = bases.load(flags.base)
    found = deltas.extract(base, bases.load(folder).model, config)
    written = deltas.save(found.delta, target)
    if flags.json:
        emit(
            {
                "out": str(target),
                "bytes": written,
                "error": found.error,
                "tensors": found.tensors,
                "kind": flags.kind,
                "base": flags.base,
            }
        )
        return
    out().print(
        f"{target}: {size(written)}, {found.tensors} parameters; misses {share(found.error)} of "
        "the model's difference (Frobenius)",
        markup=False,
    )
