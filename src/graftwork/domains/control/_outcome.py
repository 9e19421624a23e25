"""What training a policy yields: a base or a delta, and the critics that choose its actions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from graftwork.bases import Base
from graftwork.deltas import view
from graftwork.domains.control._critics import CriticConfig, Critics
from graftwork.errors import InputError, StorageError
from graftwork.training import BaseOutcome, DeltaOutcome, Outcome

CRITICS_FILE = "critics.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class PolicyOutcome(Outcome):
    """A policy as a base or a delta, with its critics where it has any.

    Attributes:
        policy: the base, or the delta of one.
        critics: choose among sampled actions; None for a cloned policy.
    """

    policy: BaseOutcome | DeltaOutcome
    critics: Critics | None = None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write base or delta, and critics.safetensors."""
        made = self.policy.write(folder)
        if self.critics is not None:
            save_critics(self.critics, folder / CRITICS_FILE)
            made = {**made, "critics": CRITICS_FILE}
        return made

    @classmethod
    def read(cls, folder: Path) -> PolicyOutcome:
        """Return what `write` wrote."""
        kind: type[BaseOutcome | DeltaOutcome] = DeltaOutcome
        if (folder / "base").is_dir():
            kind = BaseOutcome
        critics = load_critics(folder / CRITICS_FILE) if (folder / CRITICS_FILE).exists() else None
        return cls(kind.read(folder), critics)

    def module(self, base: Base | None = None) -> nn.Module:
        """Return the policy that acts: observations `(B, O)` -> `(B, 2A)`.

        Args:
            base: that the delta was made for; only for deltas.

        Raises:
            InputError: a delta without its base.
            FingerprintError: the delta is of another base.
        """
        if isinstance(self.policy, DeltaOutcome):
            if base is None:
                raise InputError("this policy is a delta: give the base that it was made for")
            return view(base, self.policy.delta).eval()
        if self.policy.base is None:
            raise InputError("this outcome was not read from a folder; use PolicyOutcome.read")
        model: nn.Module = self.policy.base.model
        return model


def save_critics(critics: Critics, path: str | Path) -> None:
    """Write critics as safetensors whose metadata hold their config.

    Raises:
        StorageError: the disk is full; nothing half-written remains.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = Path(path)
    part = file.with_name(f".part-{file.name}")
    state = {name: t.detach().cpu().contiguous() for name, t in critics.state_dict().items()}
    try:
        save_file(state, part, metadata={"critics": json.dumps(asdict(critics.config))})
        part.replace(file)
    except (OSError, SafetensorError) as cause:
        raise StorageError(f"cannot write {file}: {cause}; free space") from cause
    finally:
        part.unlink(missing_ok=True)


def load_critics(path: str | Path) -> Critics:
    """Return what `save_critics` wrote.

    Raises:
        InputError: no such file, or another one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            said: Mapping[str, Any] = json.loads((file.metadata() or {})["critics"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        critics = CriticConfig(**{**said, "hidden": tuple(said["hidden"])}).build(seed=0)
        critics.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as cause:
        raise InputError(f"{path} holds no critics ({cause})") from cause
    return critics.requires_grad_(False)
