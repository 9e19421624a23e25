"""What a model with the class of a task calls the parameters of a base without one.

PEFT's keys begin with the names of the very model that is wrapped. A base is most often loaded
without a task's head (BertModel), while its users wrap BertForSequenceClassification, in which
`encoder.layer.0` is `bert.encoder.layer.0`. We build the task's class without data and look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graftwork._errors import UnknownNameError, UnsupportedError
from graftwork.bases import Base

_CLASSES: Mapping[str, str] = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task types -> the class of transformers that its users wrap."""


@dataclass(frozen=True, slots=True)
class TaskNames:
    """Names in the wrapped model.

    Attributes:
        of: live name in the base -> name in the wrapped model.
        head: parameters of the wrapped model that the base lacks, name -> shape; empty where the
            base is the wrapped model.
    """

    of: Callable[[str], str]
    head: Mapping[str, tuple[int, ...]]


def task_names(base: Base, task_type: str | None, outputs: int | None) -> TaskNames:
    """Return the names in the model that a user of PEFT wraps.

    Args:
        base: the base.
        task_type: PEFT's name of the task; None: the base itself is wrapped.
        outputs: labels of the head, where the delta has one.

    Raises:
        UnknownNameError: no such task type.
        UnsupportedError: transformers has no such class for this model.
    """
    if task_type is None or not hasattr(base.model, "config"):
        return TaskNames(lambda name: name, {})
    shapes = _shapes(base, task_type, outputs)
    ours = [name for name, _ in base.model.named_parameters()]
    prefix = str(getattr(base.model, "base_model_prefix", ""))
    for more in ("", f"{prefix}."):
        # a task's class may drop a pooler that the base has
        if sum(f"{more}{name}" in shapes for name in ours) > len(ours) / 2:
            known = {f"{more}{name}" for name in ours}
            return TaskNames(
                lambda name, more=more: f"{more}{name}",  # type: ignore[misc]
                {name: shape for name, shape in shapes.items() if name not in known},
            )
    raise UnsupportedError(
        f"the parameters of {type(base.model).__name__} are not found in the class for "
        f"{task_type}; leave task_type out and wrap the base itself"
    )


def task_model(base: Base, task_type: str, outputs: int | None) -> nn.Module:
    """Return a model with the class of a task and the base's config; its weights mean nothing yet.

    Raises:
        UnknownNameError: no such task type.
        UnsupportedError: transformers has no such class for this model.
    """
    import copy

    import transformers

    if task_type not in _CLASSES:
        raise UnknownNameError("task type", task_type, _CLASSES)
    config: Any = copy.deepcopy(base.model.config)
    if outputs is not None:
        config.num_labels = outputs
    kind: Any = getattr(transformers, _CLASSES[task_type])
    try:
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = kind.from_config(config)
    except (ValueError, KeyError) as cause:
        reason = str(cause).partition("\n")[0]
        raise UnsupportedError(
            f"transformers has no class for {task_type} of {type(base.model).__name__}: {reason}"
        ) from cause
    return model


def _shapes(base: Base, task_type: str, outputs: int | None) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = task_model(base, task_type, outputs)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}
