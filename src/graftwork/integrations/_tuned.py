"""A tuner bound to a base as one `nn.Module`, for training loops that expect one."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._errors import FingerprintError, TrainingError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import Delta, Update, fingerprint_of, quantise
from graftwork.integrations._heads import parameters_inside, trainable_copy
from graftwork.training import derive
from graftwork.tuning import Attachment, Role, Stage, StoredType, Tuner, TuningWarning

_STATE, _STAGE, _ORIGIN = "tuned/", "stage", "origin"

_OF_THE_MODEL = (
    *("add_model_tags", "base_model", "generation_config"),
    *("get_input_embeddings", "get_output_embeddings"),
)
"""What loops ask of a transformers model (TRL runs its backbone and output layer by themselves)."""


class TunedModule(nn.Module):
    """Run like the base's model; its parameters are what the tuner trains in its present stage.

    `parameters()`, `zero_grad`, clipping and optimisers therefore see a tuner's values (and the
    heads), and `state_dict()` holds them instead of the base, with the stage and a digest of the
    base. Loading such a state goes on in its stage. In eval mode the module is as it would be
    extracted now. An update is `prepare`, backward passes, `collect`, an optimiser step;
    `DeltaCallback` calls both in a `transformers.Trainer`.

    Arguments:
        base: the frozen base, already on the device of the training; never changed.
        tuner: what parametrises the delta.
        targets: patterns of canonical names to tune; the heads are left out by themselves.
        heads: modules of the base by path ("classifier") that are trained in full, because they
            come with random values; the delta holds their differences.
        seed: of the tuner's draws.

    Raises:
        UnknownNameError: a pattern or a head matches nothing.
        UnsupportedError: a head shares a tensor with the rest of the base (a tied output layer);
            the tuner cannot tune a target.

    Example:
        >>> from graftwork import bases
        >>> from graftwork.tuning import LoRA
        >>> base = bases.load(nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> tuned = TunedModule(base, LoRA(rank=2), heads=["2"])
        >>> [tuple(p.shape) for p in tuned.parameters()]
        [(2, 8), (4, 2), (2, 4), (2,)]
    """

    def __init__(
        self,
        base: Base,
        tuner: Tuner,
        targets: Sequence[str] = ("*",),
        *,
        heads: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base, self.tuner, self.seed = base, tuner, seed
        self.stage_index = 0
        self._head_paths = tuple(heads)
        self.heads = nn.ModuleList(trainable_copy(base.model, path) for path in heads)
        inside = parameters_inside(base, heads)
        names = base.names.match(targets)
        self._targets = tuple(n for n in names if base.names[n].parameter not in inside)
        self._in_heads = tuple(
            n for n, piece in base.names.pieces.items() if piece.parameter in inside
        )
        self._registered: dict[Role, list[str]] = {}
        self._optimiser: torch.optim.Optimizer | None = None
        self._settled: AbstractContextManager[nn.Module] | None = None
        self._prepared = self._running = False
        self._checkpointing: dict[str, Any] | None = None
        self._attachment: Attachment = tuner.attach(base, self._targets, seed=seed)
        self._enter()
        self._shadow_forward()

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return self.tuner.stages[self.stage_index]

    @property
    def module(self) -> nn.Module:
        """What runs: the adapted model of the present stage."""
        return self._attachment.module

    def forward(self, *args: Any, labels: Any = None, **inputs: Any) -> Any:
        """Run the adapted model; takes and returns what the base's model does."""
        return self._run(*args, **inputs, **({} if labels is None else {"labels": labels}))

    def prepare(self, progress: float, *, update: int) -> None:
        """Begin an update: draw gates, write the working weights.

        Arguments:
            progress: the part of the stage that is done, in [0, 1).
            update: number of the update in its stage; with the seed it decides every draw.
        """
        self._leave_settled()
        seed = derive(self.seed, "gates", self.stage_index, update)
        self._attachment.prepare(progress, seed=seed)
        self._prepared = True

    def collect(self) -> None:
        """End an update, after its last backward pass: fill `.grad` of every trainable value."""
        self._attachment.collect()
        self._prepared = False
        for role, parameters in self.roles().items():
            for parameter in parameters:
                if role not in self.stage.learning_rates:
                    parameter.grad = None

    def roles(self) -> dict[Role, list[nn.Parameter]]:
        """Return the trainable tensors of the present stage by role; heads are "head"."""
        roles: dict[Role, list[nn.Parameter]] = {}
        for group in self._attachment.groups():
            roles.setdefault(group.role, []).extend(group.parameters)
        if len(self.heads):
            roles.setdefault("head", []).extend(self.heads.parameters())
        return roles

    def trained(self) -> list[nn.Parameter]:
        """Return the tensors that an optimiser has to hold in the present stage."""
        rates = self.stage.learning_rates
        return [p for role, parameters in self.roles().items() if role in rates for p in parameters]

    def optimiser(self, extra: Sequence[Mapping[str, Any]] = ()) -> torch.optim.AdamW:
        """Return AdamW with one group for each role, at the rates of the present stage.

        It follows the module through the stages: each begins with the new values, their rates and
        no moments. There is no weight decay, which would push gates to the middle.

        Arguments:
            extra: more groups in torch's form, such as a head of your own with its rate.

        Example:
            >>> trainer = Trainer(model, optimizers=(model.optimiser(), None))  # doctest: +SKIP
        """
        roles = dict.fromkeys(r for stage in self.tuner.stages for r in stage.learning_rates)
        groups = [{"params": [], "lr": 0.0, "role": role} for role in roles]
        optimiser = torch.optim.AdamW([*groups, *map(dict, extra)], weight_decay=0.0)
        self._optimiser = optimiser
        self._regroup()
        return optimiser

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute activations in the backward pass instead of keeping them, in every stage.

        The gradients are the same. A `Trainer` with `activation_checkpointing=True` calls this.

        Arguments:
            settings: of the method of the same name of a transformers model.

        Raises:
            UnsupportedError: the base's model has no such method; reentrant checkpointing, which
                gives no gradient to layers behind frozen embeddings.
        """
        if (settings.get("activation_checkpointing_kwargs") or {}).get("use_reentrant"):
            raise UnsupportedError(
                "use_reentrant=True gives no gradient to a layer whose input needs none, as behind "
                "frozen embeddings; set it to False"
            )
        self._checkpointing = settings
        self._checkpoint()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """See `activation_checkpointing_enable`; the name of older transformers."""
        self.activation_checkpointing_enable(
            activation_checkpointing_kwargs=gradient_checkpointing_kwargs
        )

    def _checkpoint(self) -> None:
        if self._checkpointing is None:
            return
        names = {
            "activation_checkpointing_enable": self._checkpointing,
            "gradient_checkpointing_enable": {  # of transformers before the other
                "gradient_checkpointing_kwargs": {
                    "use_reentrant": False,
                    **(self._checkpointing.get("activation_checkpointing_kwargs") or {}),
                }
            },
        }
        for name, settings in names.items():
            if (enable := getattr(self.module, name, None)) is not None:
                enable(**settings)
                return
        raise UnsupportedError(
            f"{type(self.module).__name__} has no activation_checkpointing_enable(): use a "
            "transformers model, or wrap its layers in torch.utils.checkpoint yourself"
        )

    def advance(self) -> bool:
        """Go on to the next stage; return False after the last one."""
        self._leave_settled()
        following = self._attachment.advance()
        if following is None:
            return False
        self._attachment, self.stage_index = following, self.stage_index + 1
        self._enter()
        self._regroup()
        return True

    def delta(
        self, stored: StoredType = "float16", provenance: Mapping[str, Any] | None = None
    ) -> Delta:
        """Return what was learnt, rounded to its stored type.

        Raises:
            TrainingError: the last stage was not reached.
        """
        if self.stage_index + 1 < len(self.tuner.stages):
            raise TrainingError(
                f"training is in stage {self.stage.name!r}, {self.stage_index + 1} of "
                f"{len(self.tuner.stages)}, and only the last one gives a delta; train on to the "
                "end (with load_best_model_at_end the best checkpoint was of an earlier stage)"
            )
        self._leave_settled()
        updates = {**self._attachment.extract(stored), **self._head_updates(stored)}
        ports = self._attachment.ports(stored)
        return Delta(
            updates=updates,
            ports=ports,
            fingerprint=fingerprint_of(self.base, updates, ports),
            provenance=dict(provenance or {}),
        )

    def _head_updates(self, stored: StoredType) -> dict[str, Update]:
        """Return the differences of the heads from the base."""
        learnt = {
            f"{path}.{name}": p
            for path, head in zip(self._head_paths, self.heads, strict=True)
            for name, p in head.named_parameters(remove_duplicate=False)
        }
        updates = {}
        for name in self._in_heads:
            piece = self.base.names[name]
            before = piece.of(self.base.model.get_parameter(piece.parameter).detach())
            after = piece.of(learnt[piece.parameter].detach())
            wide = torch.promote_types(before.dtype, torch.float32)
            difference = after.to(wide) - before.to(wide)
            updates[name] = Update(tuple(piece.shape), dense=quantise(difference, stored))
        return updates

    def train(self, mode: bool = True) -> TunedModule:
        """Set training or evaluation; in eval mode the module is as it would be extracted now."""
        self.training = mode
        self.heads.train(mode)
        if mode:
            self._leave_settled()
        self.module.train(mode)
        if not mode and self._settled is None:
            self._settled = self._attachment.settled()
            self._settled.__enter__()
        return self

    def _leave_settled(self) -> None:
        settled, self._settled = self._settled, None
        if settled is not None:
            settled.__exit__(None, None, None)

    def __getattr__(self, name: str) -> Any:
        """Return, of the few names that loops ask of a transformers model, the running model's."""
        if name in _OF_THE_MODEL and "_attachment" in vars(self):
            return getattr(self.module, name)
        return super().__getattr__(name)

    def _run(self, *args: Any, **inputs: Any) -> Any:
        self._check_prepared()
        self._running = True
        try:
            return self.module(*args, **inputs)
        finally:
            self._running = False

    def _check_backbone(self, *_: Any) -> None:
        """Check a call of the backbone, which a loop may make past `forward`."""
        if self._running:
            return
        self._check_prepared()
        bypassed = [n for n in self._attachment.ports() if n.startswith(("prompt:", "prefix:"))]
        if bypassed:
            raise UnsupportedError(
                "the loop runs the backbone by itself (base_model), past the port "
                f"{bypassed[0]!r}, which is put in before the whole model: take a tuner of weights "
                "for this loop"
            )

    def _check_prepared(self) -> None:
        if self.training and not self._prepared:
            raise TrainingError(
                "a training forward pass outside an update: give the Trainer "
                "callbacks=[DeltaCallback(model)], or call prepare() before and collect() after "
                "the backward passes of each update; for evaluation call eval()"
            )

    def _shadow_forward(self) -> None:
        """Give the instance a forward with the base's own signature: loops read it for columns."""
        inner = self.module

        @functools.wraps(inner.forward)
        def forward(*args: Any, **inputs: Any) -> Any:
            return self._run(*args, **inputs)

        self.forward = forward  # type: ignore[method-assign]
        for name in ("config", "accepts_loss_kwargs"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    def _enter(self) -> None:
        """Enter a stage: the heads join its module, its values become the parameters."""
        for path, head in zip(self._head_paths, self.heads, strict=True):
            self.module.set_submodule(path, head)
        for names in self._registered.values():
            for name in names:
                del self._parameters[name]
        self._registered, rates = {}, self.stage.learning_rates
        for group in self._attachment.groups():
            kept = self._registered.setdefault(group.role, [])
            for parameter in group.parameters:
                parameter.requires_grad_(group.role in rates)
                kept.append(f"{group.role.replace('.', '_')}_{len(kept)}")
                self.register_parameter(kept[-1], parameter)
        self.heads.requires_grad_("head" in rates)
        self._prepared = False
        self._checkpoint()
        backbone = getattr(self.module, "base_model", None)
        if isinstance(backbone, nn.Module) and backbone is not self.module:
            backbone.register_forward_pre_hook(self._check_backbone)
        self.module.train(self.training)

    def _regroup(self) -> None:
        if self._optimiser is None:
            return
        rates, roles = self.stage.learning_rates, self.roles()
        for group in self._optimiser.param_groups:
            if (role := group.get("role")) is None:
                continue
            for parameter in group["params"]:
                self._optimiser.state.pop(parameter, None)
            group["params"] = list(roles.get(role, [])) if role in rates else []
            group["lr"] = group["initial_lr"] = rates.get(role, 0.0)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        del keep_vars
        for name, tensor in self._attachment.tensors().items():
            destination[f"{prefix}{_STATE}{name}"] = tensor.detach().contiguous().clone()
        destination[prefix + _STAGE] = torch.tensor(self.stage_index)
        destination[prefix + _ORIGIN] = self._origin

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
        if prefix + _STAGE not in state_dict or prefix + _ORIGIN not in state_dict:
            raise TrainingError(
                f"the state holds no {prefix + _STAGE!r} and {prefix + _ORIGIN!r}, so it is not of "
                "a TunedModule; resume from a checkpoint of this training"
            )
        if not torch.equal(state_dict[prefix + _ORIGIN].cpu(), self._origin):
            raise FingerprintError(
                "the checkpoint is of another base, tuner, target or head than this TunedModule; "
                "make it as it was made for the checkpoint, or train into another folder"
            )
        self._go_to(int(state_dict[prefix + _STAGE]))
        start = prefix + _STATE
        self._attachment.load_tensors(
            {n.removeprefix(start): t for n, t in state_dict.items() if n.startswith(start)}
        )

    def _go_to(self, stage: int) -> None:
        """Be in `stage`, with values that are loaded over next."""
        self._leave_settled()
        if stage < self.stage_index:
            self._attachment = self.tuner.attach(self.base, self._targets, seed=self.seed)
            self.stage_index = 0
            self._enter()
            self._regroup()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TuningWarning)  # of values that do not stay
            while self.stage_index < stage and self.advance():
                pass

    @functools.cached_property
    def _origin(self) -> Tensor:
        """SHA-256 of the base, the tuner and what it trains, `(32,)` bytes."""
        prints = {n: p.digest for n, p in self.base.prints(self.base.names.pieces).items()}
        made = [prints, dict(self.base.processing), repr(self.tuner), self.seed]
        text = json.dumps([*made, self._targets, self._head_paths], sort_keys=True)
        return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TunedModule:
        """Refuse to move: the weights that run belong to the base, and stay where it is."""
        del recurse
        first = next(self.base.model.parameters(), torch.empty(0)).detach()
        values = torch.empty(0, dtype=first.dtype, device=first.device)
        moved = fn(values)
        if (moved.device, moved.dtype) != (values.device, values.dtype):
            raise UnsupportedError(
                f"a TunedModule stays on the device and in the type of its base ({values.device}, "
                f"{values.dtype}), and was to go to {moved.device}, {moved.dtype}: load the base "
                f"with bases.load(..., device='{moved.device}') first"
            )
        return self
