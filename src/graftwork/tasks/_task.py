"""A task: signature + streams + evaluator + objectives, and the modules that its ports want."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from graftwork._errors import ConfigError, UnknownNameError
from graftwork.deltas import PORT_KINDS
from graftwork.objectives import Model, Objective
from graftwork.tasks._scorer import Scorer
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
        signature: goes into the delta; prediction reads only this. None where no delta comes out:
            pretraining, control.
        streams: by name; "train" is learnt from, "eval" measured on; more are welcome.
        evaluator: metric values with their direction; None where nothing is measured.
        objectives: by name; "task" is the main one. Empty where the step has losses of its own.
        ports: modules that the delta adds, by port name, e.g. "head".
    """

    signature: Signature | None = None
    streams: Mapping[str, Stream]
    evaluator: Scorer | None = None
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    ports: Mapping[str, PortSpec] = field(default_factory=dict)

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
            ConfigError: the task has no evaluator.
        """
        if stream not in self.streams:
            raise UnknownNameError("stream", stream, self.streams)
        if self.evaluator is None:
            raise ConfigError(
                "this task has no evaluator, so nothing can be measured: give it one, or set "
                "eval_every to 0"
            )
        return self.evaluator.evaluate(model, self.streams[stream], batch_size)
