"""`transformers.Trainer` drives a tuner: the callback that begins and ends its updates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftwork._errors import ConfigError, TrainingError, UnsupportedError
from graftwork.deltas import Delta, save
from graftwork.integrations._tuned import TunedModule
from graftwork.training import share_steps
from graftwork.tuning import StoredType, TuningWarning


class DeltaCallback(TrainerCallback):
    """Let a `transformers.Trainer` train a `TunedModule`, and take the delta at the end.

    Stages follow one another by their shares of `max_steps`. The Trainer's schedule runs over the
    whole of it and multiplies the rate of every role. `max_grad_norm` limits what the Trainer sees
    (heads, low-rank factors) together, as ever; values that get their gradients afterwards, from
    working weights, are limited to it role by role (Guo, Rush, Kim, 2021, clip them separately).

    Checkpoints hold the tuner's values and stage instead of the model, and a resumed training
    gives the same delta. (`optimizer.pt` and kin are the Trainer's own files.)

    Arguments:
        tuned: the model that is trained, or a part of it.
        path: where the delta is written when the training is done; None only keeps it in `delta`.
        stored: type of the stored values.

    Raises:
        UnsupportedError: when training begins, for several processes or GPUs, fp16 scaling, and
            stages that want a batch size or objectives of their own.
        ConfigError: the optimiser does not hold what the tuner trains.
        TrainingError: the module was trained before, or is not part of the Trainer's model.

    Example:
        >>> tuned = TunedModule(base, LoRA(), heads=["classifier"])  # doctest: +SKIP
        >>> callback = DeltaCallback(tuned, "task.safetensors")  # doctest: +SKIP
        >>> Trainer(
        ...     tuned,
        ...     args,
        ...     train_dataset=rows,
        ...     callbacks=[callback],
        ...     optimizers=(tuned.optimiser(), None),
        ... ).train()  # doctest: +SKIP
    """

    def __init__(
        self,
        tuned: TunedModule,
        path: str | Path | None = None,
        *,
        stored: StoredType = "float16",
    ) -> None:
        self.tuned, self.path, self.stored = tuned, path, stored
        self._budget: list[int] = []
        self._delta: Delta | None = None

    @property
    def delta(self) -> Delta:
        """The delta of the training.

        Raises:
            TrainingError: no training was completed.
        """
        if self._delta is None:
            raise TrainingError(
                "no delta yet: the Trainer has not trained to the end of the stages"
            )
        return self._delta

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Check what would otherwise train wrongly without a word."""
        del control
        _check_model(self.tuned, given["model"])
        _check_arguments(self.tuned, args)
        _check_optimiser(self.tuned, given["optimizer"], given["lr_scheduler"])
        self._delta = None
        self._budget = share_steps(state.max_steps, [s.share for s in self.tuner_stages])
        if self._place(state.global_step)[0] < self.tuned.stage_index:
            raise TrainingError(
                f"the TunedModule is in stage {self.tuned.stage.name!r} already, but training "
                "begins anew; make a new TunedModule, or resume_from_checkpoint"
            )

    @property
    def tuner_stages(self) -> tuple[Any, ...]:
        """The stages of the tuner."""
        return self.tuned.tuner.stages

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Go on to the next stage where it is due, draw gates, write the working weights."""
        del args, control
        stage, index = self._place(state.global_step)
        while self.tuned.stage_index < stage:
            self.tuned.advance()
            _reschedule(given["optimizer"], given["lr_scheduler"])
        self.tuned.prepare(index / self._budget[stage], update=index)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Fill the gradients of the trainable values, and limit those that are new."""
        del state, control, given
        seen = {id(p) for p in self.tuned.trained() if p.grad is not None}
        self.tuned.collect()
        for parameters in self.tuned.roles().values():
            fresh = [p for p in parameters if p.grad is not None and id(p) not in seen]
            if fresh and args.max_grad_norm:
                nn.utils.clip_grad_norm_(fresh, args.max_grad_norm, error_if_nonfinite=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Take the delta and write it; a training that was stopped half-way gives none."""
        del args, control, given
        if state.global_step < sum(self._budget[:-1]) + 1:
            warnings.warn(
                f"training stopped at step {state.global_step} of {state.max_steps}, in stage "
                f"{self.tuned.stage.name!r}, so there is no delta yet: resume it",
                TuningWarning,
                stacklevel=2,
            )
            return
        made = {"method": repr(self.tuned.tuner), "steps": state.global_step}
        self._delta = self.tuned.delta(self.stored, made)
        if self.path is not None and state.is_world_process_zero:
            save(self._delta, self.path)

    def _place(self, step: int) -> tuple[int, int]:
        """Return the stage of an update, and its number in it."""
        for stage, steps in enumerate(self._budget):
            if step < steps:
                return stage, step
            step -= steps
        return len(self._budget) - 1, self._budget[-1]


def _check_model(tuned: TunedModule, model: nn.Module) -> None:
    if all(module is not tuned for module in model.modules()):
        raise TrainingError(
            f"the Trainer's model ({type(model).__name__}) does not hold the TunedModule of this "
            "callback, which would stay as it is: give both the same object"
        )


def _check_arguments(tuned: TunedModule, args: TrainingArguments) -> None:
    if args.world_size > 1 or args.n_gpu > 1:
        raise UnsupportedError(
            f"a TunedModule trains in one process on one device, not {args.world_size} processes "
            f"with {args.n_gpu} GPUs: wrappers average gradients before the tuner has computed "
            "them; for several use `torchrun -m graftwork adapt`, or set CUDA_VISIBLE_DEVICES"
        )
    if args.fp16:
        raise UnsupportedError(
            "fp16=True scales the loss, and with it what a tuner adds to it; use bf16=True"
        )
    if not 0 < args.max_grad_norm < float("inf") and args.max_grad_norm != 0:
        raise ConfigError(f"max_grad_norm: at least 0, not {args.max_grad_norm}")
    for stage in tuned.tuner.stages:
        wanted, given = stage.batch_size, args.per_device_train_batch_size
        if wanted is not None and wanted != given:
            raise UnsupportedError(
                f"stage {stage.name!r} wants batches of {wanted}, the Trainer has {given} and "
                "cannot change between stages: set per_device_train_batch_size, or the tuner's own"
            )
        if stage.objectives:
            raise UnsupportedError(
                f"stage {stage.name!r} minimises {list(stage.objectives)}, but a Trainer has one "
                "loss; use graftwork.training.fit"
            )


def _check_optimiser(tuned: TunedModule, optimiser: Any, scheduler: Any) -> None:
    groups = optimiser.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    several = len(tuned.tuner.stages) > 1
    if any(id(p) not in held for p in tuned.trained()) or (
        several and not any("role" in group for group in groups)
    ):
        raise ConfigError(
            "the optimiser does not hold what the tuner trains, or cannot follow it from stage to "
            "stage: give the Trainer optimizers=(tuned.optimiser(), None)"
        )
    if several and not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise UnsupportedError(
            f"a tuner with {len(tuned.tuner.stages)} stages needs a schedule that is a factor of "
            f"the rates, not {type(scheduler).__name__}: lr_scheduler_type 'linear', 'cosine', "
            "'constant' and kin"
        )


def _reschedule(optimiser: Any, scheduler: Any) -> None:
    """Let the schedule go on at the rates of a new stage."""
    for i, group in enumerate(optimiser.param_groups):
        scheduler.base_lrs[i] = group["initial_lr"]
        group["lr"] = group["initial_lr"] * scheduler.lr_lambdas[i](scheduler.last_epoch)
