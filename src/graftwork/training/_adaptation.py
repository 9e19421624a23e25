"""An adaptation: a base, a tuner bound to it, and ports, as one model that can be trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import TrainingError
from graftwork.deltas import BaseLike, Delta, Fingerprint, port_of
from graftwork.tasks import PortSpec, Signature
from graftwork.tuning import Attachment, Group, Role, Stage, StoredType


@dataclass(eq=False)
class Adaptation:
    """One delta in the making; calling it runs the adapted model on a batch. `start` makes one.

    Attributes:
        base: the frozen base.
        signature: how the base is called.
        attachment: the tuner's present stage.
        ports: modules at ports, e.g. the head; trained beside the attachment.
        specs: what rebuilds each port, by its name.
        stages: all stages of the tuner.
        seed: root of every random draw.
        unreached: targets that the task's loss does not reach and that were left out.
    """

    base: BaseLike
    signature: Signature
    attachment: Attachment
    ports: nn.ModuleDict
    specs: Mapping[str, PortSpec]
    stages: Sequence[Stage]
    seed: int = 0
    unreached: Sequence[str] = ()

    def __call__(self, batch: Batch) -> Any:
        """Return the outputs of the adapted model, e.g. logits `(B, labels)`."""
        return self.signature.call_model(self.attachment.module, self.ports, batch.inputs)

    @property
    def groups(self) -> list[Group]:
        """Trainable values by role: the attachment's groups, and the ports as "head"."""
        ports = tuple(self.ports.parameters())
        return [*self.attachment.groups(), *([Group("head", ports)] if ports else [])]

    def train(self, rates: Mapping[Role, float], *, dropout: bool = True) -> None:
        """Enter a stage: only roles with a rate need gradients, dropout is on if wanted."""
        for parameter in self.ports.parameters():
            parameter.requires_grad_("head" in rates)
        for module in (self.attachment.module, self.ports):
            module.train(dropout)

    def advance(self) -> bool:
        """Go on to the tuner's next stage; return False after the last one."""
        following = self.attachment.advance()
        if following is None:
            return False
        self.attachment = following
        return True

    def tensors(self) -> dict[str, Tensor]:
        """Return all state beside the base by name; not copied."""
        state = {f"attachment/{name}": t for name, t in self.attachment.tensors().items()}
        return state | {f"ports/{name}": t for name, t in self.ports.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, bit for bit."""
        self.attachment.load_tensors(part(tensors, "attachment/"))
        self.ports.load_state_dict(part(tensors, "ports/"))

    @cached_property
    def base_digest(self) -> str:
        """SHA-256 (hex) of the prints of all tensors of the base, and how inputs are processed."""
        prints = {n: p.digest for n, p in self.base.prints(self.base.names.pieces).items()}
        text = json.dumps([prints, dict(self.base.processing)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def check_finite(self) -> None:
        """Raise unless every trainable value is a number.

        Raises:
            TrainingError: a value is NaN or infinite; names its role.
        """
        for group in self.groups:
            for parameter in group.parameters:
                if not bool(torch.isfinite(parameter).all()):
                    raise TrainingError(
                        f"the {group.role} are no longer finite; lower their learning rate"
                    )

    def delta(
        self, stored: StoredType = "float16", provenance: Mapping[str, Any] | None = None
    ) -> Delta:
        """Return what was learnt, rounded to its stored type, with the print of what it touches.

        Arguments:
            stored: type of values and ports in memory and in the file. 16 bits lose nothing that
                shows in a metric for values of a delta; "float64" keeps all bits.
            provenance: JSON about how it was made.
        """
        updates = self.attachment.extract(stored)
        touched = Fingerprint(self.base.prints(updates), dict(self.base.processing))
        ports = {
            name: port_of(module, self.specs[name].kind, self.specs[name].config, stored)
            for name, module in self.ports.items()
        }
        return Delta(updates, ports, self.signature.to_json(), touched, provenance or {})


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix`, without it.

    Example:
        >>> part({"ports/head.bias": torch.zeros(1), "step/t": torch.ones(1)}, "step/")
        {'t': tensor([1.])}
    """
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
