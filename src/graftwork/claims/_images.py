"""Small pictures with a pretrained base, for claims that need a real transfer within minutes.

Shape legend: B rows, S side of a picture, L = S rows of a picture read as positions, H width.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork.bases import Base
from graftwork.bases import load as load_base
from graftwork.claims._claim import DataFile
from graftwork.errors import InputError
from graftwork.objectives import OBJECTIVES
from graftwork.tasks import ArrayInput, Evaluator, PortSpec, Signature, Table, TableStream, Task

_ORIGIN = (
    "the MNIST test split (LeCun and Cortes, CC BY-SA 3.0), as in github.com/fgnt/mnist at "
    "ae608a02b796c9ee908c082585a5f006fe05258e"
)
MNIST_IMAGES = DataFile(
    "mnist/t10k-images-idx3-ubyte.gz",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    _ORIGIN,
)
MNIST_LABELS = DataFile(
    "mnist/t10k-labels-idx1-ubyte.gz",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    _ORIGIN,
)

Pixels = NDArray[np.uint8]
"""`(N, S, S)` grey values."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled pictures.

    Attributes:
        pixels: `(N, S, S)` uint8.
        labels: `(N,)` int64 digits 0 to 9.
        form: preprocessing to mean 0 and deviation 1 over all pixels.
        peak: the brightest value.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    form: ArrayInput
    peak: int


def pictures(source: Literal["mnist", "digits"], folder: Path | None) -> Pictures:
    """Return MNIST's test split from `folder`, or the 1,797 digits inside scikit-learn.

    Raises:
        InputError: MNIST's files are absent, or others than the claim was made on.
    """
    if source == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        form = ArrayInput((8, 8), scale=1 / 16, mean=(0.305,), std=(0.376,))
        return Pictures(
            pixels.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int64), form, 16
        )
    images, digits = (
        gzip.decompress(file.find(folder).read_bytes()) for file in (MNIST_IMAGES, MNIST_LABELS)
    )
    form = ArrayInput((28, 28), scale=1 / 255, mean=(0.1307,), std=(0.3081,))
    grey = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return Pictures(grey, np.frombuffer(digits, np.uint8, offset=8).astype(np.int64), form, 255)


def _turned(pixels: Pixels, peak: int, quarters: int) -> Pixels:
    del peak
    return np.rot90(pixels, quarters, axes=(1, 2))


def _transposed(pixels: Pixels, peak: int) -> Pixels:
    del peak
    return pixels.transpose(0, 2, 1)


def _permuted(pixels: Pixels, peak: int) -> Pixels:
    del peak
    columns = np.random.Generator(np.random.PCG64(0)).permutation(pixels.shape[2])
    return pixels[:, :, columns]


SHIFTS: Mapping[str, Callable[[Pixels, int], Pixels]] = {
    "rotated": lambda pixels, peak: _turned(pixels, peak, 1),
    "upside down": lambda pixels, peak: _turned(pixels, peak, 2),
    "inverted": lambda pixels, peak: (peak - pixels).astype(np.uint8),
    "columns permuted": _permuted,
    "transposed": _transposed,
}
"""Target tasks by name: what is done to each picture, (pixels, brightest value) -> pixels."""


class Block(nn.Module):
    """A pre-LN transformer layer of width H with `heads` heads and a GELU layer of 4 H."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, L, H)` to the same shape."""
        split = self.qkv(self.norm_1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        x = x + self.mix(mixed)
        out: Tensor = x + self.narrow(F.gelu(self.wide(self.norm_2(x))))
        return out


class RowReader(nn.Module):
    """A transformer that reads the rows of a picture as a sequence.

    Args:
        side: rows, and pixels of a row.
        width: of the hidden states.
        layers: how many blocks.
        heads: of each block.
    """

    def __init__(self, side: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(side, width)
        self.position = nn.Parameter(0.02 * torch.randn(side, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures `(B, S, S)` to hidden states `(B, L, H)`."""
        hidden: Tensor = self.embed(x) + self.position
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.norm(hidden)
        return out


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a transfer; the defaults are those of the judged claim."""

    source: Literal["mnist", "digits"] = "mnist"
    """Where pictures come from."""
    width: int = 48
    """Of the base's hidden states."""
    layers: int = 2
    """Of the base."""
    heads: int = 4
    """Of each layer."""
    pretrain_rows: int = 6000
    """Upright pictures that the base learns from."""
    pretrain_steps: int = 700
    """Updates of Adam at 1e-3 on batches of 32."""
    train_rows: int = 2000
    """Shifted pictures that a delta learns from."""
    test_rows: int = 2000
    """Shifted pictures that it is measured on; no set shares a picture with another."""
    device: str = "cpu"
    """Where the base lives."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A pretrained base, and pictures that it has not seen.

    Attributes:
        base: frozen, every tensor under guard of `Base.verify`.
        source: the pictures of all sets.
        train: rows of `source` for the target tasks.
        test: rows of `source` to measure on.
        seed: of the run.
    """

    base: Base
    source: Pictures
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    seed: int

    def task(self, shift: str) -> Task:
        """Return a target task of `SHIFTS`, its streams at their start."""
        form = self.source.form
        labels = tuple(map(str, range(10)))
        signature = Signature(
            kind="classification", call="array", fields=("x",), labels=labels, array=form
        )
        width = int(self.base.model.get_parameter("norm.weight").numel())
        return Task(
            signature=signature,
            streams={
                "train": self._stream("train", self._table(shift, self.train), signature),
                "eval": self._stream("eval", self._table(shift, self.test), signature),
            },
            evaluator=Evaluator(signature, ("accuracy",)),
            objectives={"task": OBJECTIVES["cross_entropy"]},
            ports={"head": PortSpec("head", {"in_features": width, "out_features": 10})},
        )

    def _table(self, shift: str, rows: NDArray[np.int64]) -> Table:
        pixels = np.ascontiguousarray(SHIFTS[shift](self.source.pixels[rows], self.source.peak))
        return Table({"x": pixels, "label": [str(d) for d in self.source.labels[rows]]}, shift)

    def _stream(self, name: str, table: Table, signature: Signature) -> TableStream:
        return TableStream(
            table=table, signature=signature, base=self.base, name=name, seed=self.seed
        )


def prepare(sizes: Sizes, seed: int, folder: Path | None) -> Transfer:
    """Return a base pretrained on upright pictures, and rows for the targets; all from `seed`.

    Raises:
        InputError: the sizes want a GPU and there is none, or a data file is absent.
    """
    if sizes.device == "cuda" and not torch.cuda.is_available():
        raise InputError("this scale needs a GPU that torch can use; run the scale 'quick' instead")
    source = pictures(sizes.source, folder)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(source.labels))
    cuts = np.cumsum([sizes.pretrain_rows, sizes.train_rows, sizes.test_rows])
    pretrain, train, test = (np.sort(part) for part in np.split(order[: cuts[-1]], cuts[:-1]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        side = source.pixels.shape[1]
        model = RowReader(side, sizes.width, sizes.layers, sizes.heads).to(sizes.device)
        _pretrain(model, source, pretrain, sizes)
    base = load_base(model, device=sizes.device)
    base.prints(base.names.pieces)
    return Transfer(base, source, train, test, seed)


def _pretrain(model: RowReader, source: Pictures, rows: NDArray[np.int64], sizes: Sizes) -> None:
    device = sizes.device
    x = source.form.normalised(source.pixels[rows]).to(device)
    y = torch.from_numpy(source.labels[rows]).to(device)
    head = nn.Linear(sizes.width, 10).to(device)
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(sizes.pretrain_steps):
        batch = torch.randint(len(x), (32,)).to(device)
        loss = F.cross_entropy(head(model(x[batch]).mean(1)), y[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def logits_of(model: Callable[[Any], Tensor], task: Task) -> Tensor:
    """Return the logits `(N, 10)` of `model` over the test rows of `task`, in order."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in task.streams["eval"].once(500)])
