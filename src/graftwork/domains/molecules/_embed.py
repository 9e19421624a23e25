"""Molecules to vectors by a frozen base, and a linear model on the vectors.

Shape legend: M molecules, B rows of a batch, L positions, W width of the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graftwork.domains.molecules._report import MoleculeReport, check_molecules
from graftwork.errors import InputError
from graftwork.tasks import TaskBase, pool


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Vectors of molecules.

    Attributes:
        vectors: `(M, F)` float32; NaN in the rows that are no molecules.
        report: says which those are, and why.
    """

    vectors: NDArray[np.float32]
    report: MoleculeReport

    @property
    def valid(self) -> NDArray[np.bool_]:
        """`(M,)` True where the row is a molecule."""
        return self.report.valid


@dataclass(eq=False)
class Embedder:
    """Encodes molecules by a frozen base, sorted by length so that little is padding.

    A vector depends on its molecule alone, not on its batch, and is kept: molecules seen before
    cost nothing.

    Args:
        base: with a SMILES tokenizer, e.g. of `graftwork.bases.load`.
        poolings: how positions become a vector; several are put side by side. Default: the mean,
            as published. ("mean", "max") often serves a linear model better.
        batch_size: molecules of a batch.

    Raises:
        InputError: the base has no tokenizer.

    Example:
        >>> found = Embedder(load("runs/molformer/base"))(["CCO", "c1cccc1"])  # doctest: +SKIP
        >>> found.vectors.shape, found.valid.tolist()  # doctest: +SKIP
        ((2, 128), [True, False])
    """

    base: TaskBase
    poolings: Sequence[str] = ("mean",)
    batch_size: int = 128
    _kept: dict[str, NDArray[np.float32]] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.base.tokenizer is None:
            raise InputError("the base has no tokenizer, so it cannot read molecules")

    def __call__(self, smiles: Sequence[Any]) -> Embeddings:
        """Return the vectors of `smiles` in their order; what is no molecule gives NaN."""
        report = check_molecules(
            smiles,
            max_length=self.base.max_length,
            vocabulary=frozenset(self.base.tokenizer.get_vocab()),
        )
        return Embeddings(self._rows([row.smiles for row in report.rows]), report)

    def canonical(self, smiles: Sequence[str]) -> NDArray[np.float32]:
        """Return `(M, F)` vectors of molecules that are canonical already."""
        return self._rows(smiles)

    def _rows(self, smiles: Sequence[str | None]) -> NDArray[np.float32]:
        self._encode([text for text in dict.fromkeys(smiles) if text and text not in self._kept])
        width = next((len(v) for v in self._kept.values()), 0)
        nothing = np.full(width, np.nan, dtype=np.float32)
        return np.stack([nothing if text is None else self._kept[text] for text in smiles])

    def _encode(self, texts: list[str]) -> None:
        tokenizer, limit = self.base.tokenizer, self.base.max_length
        device = next(self.base.model.parameters()).device
        texts.sort(key=len)
        for first in range(0, len(texts), self.batch_size):
            some = texts[first : first + self.batch_size]
            inputs = tokenizer(
                some,
                padding=True,
                truncation=limit is not None,
                max_length=limit,
                return_tensors="pt",
            ).to(device)
            with torch.inference_mode():
                output = self.base.model(**inputs)
                mask = inputs["attention_mask"]
                parts = [pool(output, mask, name) for name in self.poolings]
                rows = torch.cat(parts, dim=-1).float().cpu().numpy()
            self._kept |= dict(zip(some, rows, strict=True))
