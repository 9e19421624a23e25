"""An adaptation: a base, a tuner bound to it, and ports, as one model that can be trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork.deltas import BaseLike, Delta, fingerprint_of, port_of
from graftwork.tasks import PortSpec, Signature
from graftwork.training._trainee import Trainee, part
from graftwork.tuning import Attachment, Group, Stage, StoredType


@dataclass(eq=False)
class Adaptation(Trainee):
    """One delta in the making; calling it runs the adapted model on a batch. `start` makes one.

    Attributes:
        base: the frozen base.
        signature: how the base is called.
        attachment: the tuner's present stage.
        ports: modules at ports, e.g. the head; trained beside the attachment. A port whose name a
            stage has a rate for is a role of its own; the others are the role "head".
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
    def modules(self) -> tuple[nn.Module, ...]:
        """The adapted base and the ports."""
        return (self.attachment.module, self.ports)

    @property
    def groups(self) -> list[Group]:
        """The attachment's groups, and the ports."""
        own = {role for stage in self.stages for role in stage.learning_rates}
        roles: dict[str, list[nn.Parameter]] = {}
        for name, port in self.ports.items():
            role = name if name in own else "head"
            roles.setdefault(role, []).extend(port.parameters())
        ports = [Group(role, tuple(values)) for role, values in roles.items() if values]
        return [*self.attachment.groups(), *ports]

    @property
    def watched(self) -> Sequence[nn.Module]:
        """The adapted base, where the attachment trains nothing (scores)."""
        return () if self.attachment.groups() else (self.attachment.module,)

    def prepare(self, progress: float, *, seed: int) -> None:
        """Draw gates, write the working weights."""
        self.attachment.prepare(progress, seed=seed)

    def collect(self) -> None:
        """Turn working gradients into those of the trainable values."""
        self.attachment.collect()

    def settled(self) -> AbstractContextManager[nn.Module]:
        """Return a context in which the adapted base is as it would be extracted now."""
        return self.attachment.settled()

    def report(self) -> dict[str, float]:
        """Return what the attachment reports: density, shift, ..."""
        return self.attachment.report()

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
    def origin(self) -> str:
        """SHA-256 (hex) of the prints of all tensors of the base, and how inputs are processed."""
        prints = {n: p.digest for n, p in self.base.prints(self.base.names.pieces).items()}
        text = json.dumps([prints, dict(self.base.processing)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

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
        inside = self.attachment.ports(stored)
        touched = fingerprint_of(self.base, updates, inside)
        ports = inside | {
            name: port_of(module, self.specs[name].kind, self.specs[name].config, stored)
            for name, module in self.ports.items()
        }
        return Delta(updates, ports, self.signature.to_json(), touched, provenance or {})
