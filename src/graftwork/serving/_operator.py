"""The operator through which a compiled base runs each row's own weights.

To a compiler it is one opaque step, and which deltas a row has is the data of a tensor. So another
plan is another tensor: nothing is compiled anew.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftwork._errors import UnusedTensorError
from graftwork.serving._sites import Site
from graftwork.serving._state import Run
from graftwork.serving._together import TOGETHER

GROUPS = 1 << 20
"""Choices of one run: `choice = number of the run * GROUPS + group`."""


class Runs:
    """Runs that are under way, by number; a run is gone when nobody holds it any more."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._held: weakref.WeakValueDictionary[int, Ticket] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def enter(self, run: Run, places: dict[str, tuple[Site, nn.Module]]) -> Ticket:
        """Return a run's ticket; it must be kept while the run is under way."""
        with self._lock:
            number = next(self._numbers)
            index = run.spans.rows.index.cpu()
            ticket = Ticket(run, places, index + number * GROUPS)
            self._held[number] = ticket
        return ticket

    def find(self, choice: Tensor) -> Ticket:
        """Return the ticket that a choice speaks of."""
        ticket = self._held.get(int(choice[0]) // GROUPS)
        if ticket is None:
            raise UnusedTensorError("a compiled module was kept beyond the run that lent it")
        return ticket


class Ticket:
    """One run that is under way.

    Attributes:
        run: the run.
        places: path -> site, and the base's own module there.
        choice: `(B,)` int64, what says which run, and which group each row is of.
    """

    def __init__(self, run: Run, places: dict[str, tuple[Site, nn.Module]], choice: Tensor) -> None:
        self.run, self.places, self.choice = run, places, choice


RUNS = Runs()
"""The runs of this process. The number travels with the call, so threads do not meet here."""


@torch.library.custom_op(
    "graftwork::rows",
    mutates_args=(),
    schema="(Tensor x, Tensor choice, str path, int[] form, ScalarType dtype) -> Tensor",
)
def rows(x: Tensor, choice: Tensor, path: str, form: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Run a site, each row by its own weights.

    Args:
        x: what its module gets.
        choice: `(B,)` int64; see `Ticket`.
        path: of the site.
        form: of the output: dimensions of `x` that it keeps, width that is the last one, and
            entries of each row where all rows share `x` (else 0).
        dtype: of the output.
    """
    del form
    ticket = RUNS.find(choice)
    site, module = ticket.places[path]
    ticket.run.consumed.add(path)
    terms = ticket.run.terms[path]
    found = TOGETHER[site.kind](site, module, terms, ticket.run, site.rows, x)
    return found.to(dtype).contiguous()


@rows.register_fake
def _(x: Tensor, choice: Tensor, path: str, form: Sequence[int], dtype: torch.dtype) -> Tensor:
    del path
    kept, width, repeat = form
    shape: tuple[int, ...] = x.shape[:kept]
    if repeat:
        shape = (choice.shape[0] * repeat, *shape[1:])
    return x.new_empty(*shape, width, dtype=dtype)


@dataclass(slots=True, eq=False)
class Stub:
    """What a module of a compiled base knows of its site."""

    path: str
    embeds: bool
    width: int
    repeat: int
    dtype: torch.dtype

    @classmethod
    def of(cls, site: Site, module: nn.Module) -> Stub:
        """Return the stub of a site; `module` is the base's own."""
        weight = module._parameters["weight"]
        assert weight is not None
        across = {"linear": 0, "layer_norm": -1}.get(site.kind, 1)
        embeds = site.kind == "embedding"
        return cls(site.path, embeds, weight.shape[across], site.repeat, weight.dtype)


def compiled_forward(module: nn.Module, x: Tensor) -> Tensor:
    """The forward of a site in a compiled base: one operator."""
    stub: Stub = module._graftwork_stub  # type: ignore[assignment]
    choice: Tensor = module._graftwork_choice  # type: ignore[assignment]
    kept = x.dim() if stub.embeds else x.dim() - 1
    out: Tensor = rows(x, choice, stub.path, [kept, stub.width, stub.repeat], stub.dtype)
    return out
