"""A task: signature + streams + evaluator + objectives, and the modules that its ports want."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from graftwork._errors import UnknownNameError
from graftwork.deltas import PORT_KINDS
from graftwork.objectives import Model, Objective
from graftwork.tasks._evaluator import Evaluator
from graftwork.tasks._signature import Signature
from graftwork.tasks._stream import Stream


@dataclass(frozen=True, slots=True)
class PortSpec:
    """A module that a task wants at a port.

    Attributes:
        kind: key of `graftwork.deltas.PORT_KINDS`, e.g. "head".
        config: JSON arguments of the module, e.g. in_features, out_features, hidden.
    """

    kind: str
    config: Mapping[str, Any]

    def build(self) -> nn.Module:
        """Return a new module; its first values come from torch's own generator, so seed that."""
        if self.kind not in PORT_KINDS:
            raise UnknownNameError("port kind", self.kind, PORT_KINDS)
        module: nn.Module = PORT_KINDS[self.kind](**self.config)
        return module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """All that training and evaluation need to know of a task.

    Attributes:
        signature: goes into the delta; prediction reads only this.
        streams: by name; "train" is learnt from, "eval" measured on; more are welcome.
        evaluator: metric values with their direction.
        objectives: by name; "task" is the main one.
        ports: modules that the delta adds, by port name, e.g. "head".
    """

    signature: Signature
    streams: Mapping[str, Stream]
    evaluator: Evaluator
    objectives: Mapping[str, Objective]
    ports: Mapping[str, PortSpec]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content of all streams."""
        lines = sorted(f"{name}:{stream.digest}\n" for name, stream in self.streams.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def build_ports(self) -> nn.ModuleDict:
        """Return new modules for all ports; seed torch's generator before."""
        return nn.ModuleDict({name: spec.build() for name, spec in self.ports.items()})

    def evaluate(
        self, model: Model, stream: str = "eval", batch_size: int = 64
    ) -> dict[str, float]:
        """Return metric values of `model` on a stream, overall and by group.

        Raises:
            UnknownNameError: no such stream.
        """
        if stream not in self.streams:
            raise UnknownNameError("stream", stream, self.streams)
        return self.evaluator.evaluate(model, self.streams[stream], batch_size)
