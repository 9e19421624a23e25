"""Rows made ready once and put together per batch: token ids, arrays, pictures.

Shape legend: N rows of the data, B rows of a batch, S texts a row, L positions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork._errors import InputError, MissingDependencyError
from graftwork.tasks._categories import check_categories

PICTURE_MEMORY = 1 << 30
"""Decoded pictures are kept up to this many bytes; beyond it each batch decodes its own again."""


@runtime_checkable
class Encoded(Protocol):
    """All rows of a table, ready to be put into batches."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(N,)` cost of each row, for sorting by length."""

    def collate(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the inputs of the given rows; the first dimension of each tensor is the row."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids of all rows, end to end.

    Attributes:
        flat: tokenizer key -> `(total,)` int32 values of all texts.
        starts: `(N, S)` int64, where each text begins in `flat`.
        sizes: `(N, S)` int64, tokens of each text.
        pads: tokenizer key -> value of the padding.
        sided: True gives `(B, S, L)`, False (S = 1) gives `(B, L)`.
    """

    flat: Mapping[str, NDArray[np.int32]]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    pads: Mapping[str, int]
    sided: bool

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(N,)` tokens of the longest text of each row."""
        return np.asarray(self.sizes.max(axis=1))

    def collate(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return ids padded on the right to the longest text of the batch, and the mask; int64."""
        sizes = self.sizes[rows]
        positions = np.arange(max(int(sizes.max()), 1))
        inside = positions < sizes[..., None]
        index = (self.starts[rows][..., None] + positions)[inside]
        out: dict[str, Tensor] = {}
        for key, values in self.flat.items():
            padded = np.full(inside.shape, self.pads[key], dtype=np.int64)
            padded[inside] = values[index]
            out[key] = self._shaped(padded)
        out["attention_mask"] = self._shaped(inside.astype(np.int64))
        return out

    def _shaped(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values if self.sided else values[:, 0])


@dataclass(frozen=True, slots=True)
class ArrayInput:
    """How a row's array or picture becomes the tensor that the module is called with.

    A row `x` becomes `(x * scale - mean) / std`; `mean` and `std` are one number each or one for
    each entry of the row's first dimension (channels).

    Attributes:
        shape: shape of a row after resizing, e.g. `(3, 224, 224)`.
        dtype: "float32", or "int64" for ids (then scale, mean and std do not apply).
        scale: 1 / 255 for pictures.
        mean: subtracted.
        std: divided by.
        picture: "" for arrays; "RGB" or "L" for files or bytes that Pillow reads, which are
            converted, resized to `shape[1:]` (bilinear) and put channels first.
        categories: for rows made of columns, the names in each column that holds categories, none
            for a column of numbers. A name becomes its place, from 1; anything else 0.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    picture: str = ""
    categories: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "int64"):
            raise InputError(f"array dtype {self.dtype!r} is neither 'float32' nor 'int64'")
        if self.picture not in ("", "RGB", "L"):
            raise InputError(f"picture mode {self.picture!r} is none of '', 'RGB', 'L'")
        if self.picture and len(self.shape) != 3:
            raise InputError(f"a picture's shape is (channels, height, width), not {self.shape}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, *self.shape[:1]):
                raise InputError(
                    f"{name} has {len(values)} values; give 1, or {self.shape[:1]} as rows have"
                )
        if any(value <= 0 for value in self.std):
            raise InputError(f"std {self.std} must be positive")
        check_categories(self.categories, self.shape)

    def normalised(self, values: NDArray[Any]) -> Tensor:
        """Return `(B, *shape)` raw values as the module's input tensor."""
        if self.dtype == "int64":
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
        width = (-1,) + (1,) * (len(self.shape) - 1)
        mean, std = (np.asarray(v, dtype=np.float32).reshape(width) for v in (self.mean, self.std))
        out = (values.astype(np.float32) * np.float32(self.scale) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(out))


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Arrays of all rows, `(N, *shape)` as given; normalised per batch."""

    values: NDArray[Any]
    form: ArrayInput

    @property
    def lengths(self) -> NDArray[np.int64]:
        """All rows cost the same."""
        return np.ones(len(self.values), dtype=np.int64)

    def collate(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return `{"x": (B, *shape)}`."""
        return {"x": self.form.normalised(self.values[rows])}


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Encoded pictures of all rows that do not fit into memory decoded."""

    files: list[Any]
    form: ArrayInput

    @property
    def lengths(self) -> NDArray[np.int64]:
        """All rows cost the same."""
        return np.ones(len(self.files), dtype=np.int64)

    def collate(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return `{"x": (B, *shape)}`, decoded now."""
        decoded = [decode_picture(self.files[row], self.form, f"row {row + 1}") for row in rows]
        return {"x": self.form.normalised(np.stack(decoded))}


def decode_picture(file: Any, form: ArrayInput, where: str) -> NDArray[np.uint8]:
    """Return a picture as `(channels, height, width)` uint8 of `form.shape`.

    Args:
        file: a path, or the bytes of a file.
        form: mode and size.
        where: how errors name the row.

    Raises:
        InputError: not a picture that Pillow can read.
        MissingDependencyError: Pillow is absent.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("pillow", "images", "reading pictures") from error
    source = io.BytesIO(file) if isinstance(file, bytes) else Path(file)
    try:
        with Image.open(source) as opened:
            height, width = form.shape[1:]
            picture = opened.convert(form.picture)
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise InputError(f"{where}: not a picture that can be read ({error})") from error
    values = np.asarray(picture, dtype=np.uint8)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))
