"""Restoring the tensors of an attachment from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graftwork._errors import TrainingError


def restore(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `into`, in place and bit for bit.

    Raises:
        TrainingError: a tensor is missing, extra, or of another shape or type.
    """
    if into.keys() != tensors.keys():
        differing = sorted(into.keys() ^ tensors.keys())
        raise TrainingError(
            f"the checkpoint holds other tuner state than this stage: {differing[:3]}; was the "
            "tuner or its stage changed?"
        )
    with torch.no_grad():
        for name, target in into.items():
            source = tensors[name]
            if source.shape != target.shape or source.dtype != target.dtype:
                raise TrainingError(
                    f"tuner state {name!r} is {source.dtype} {tuple(source.shape)} in the "
                    f"checkpoint, here {target.dtype} {tuple(target.shape)}; was the base, the "
                    "targets or the share changed?"
                )
            target.copy_(source)
