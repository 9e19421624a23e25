"""Tuners: a tuner parametrises a delta for learning, and sees no loss.

`TUNERS` lists them by name. A tuner is a frozen config; `attach` binds it to a base and gives an
`Attachment`, which any training loop can drive. All of a tuner with several stages, here diff
pruning with its gates, projection and fixed mask, is one loop:

    >>> import torch
    >>> from graftwork import bases, deltas, tuning
    >>> rng = torch.Generator().manual_seed(0)
    >>> def matrix(*shape: int) -> torch.Tensor:
    ...     return torch.randn(*shape, generator=rng)
    >>> model, x = torch.nn.Linear(20, 1), matrix(64, 20)
    >>> model.load_state_dict({"weight": matrix(1, 20), "bias": torch.zeros(1)})
    <All keys matched successfully>
    >>> base = bases.load(model)
    >>> y = model(x).detach() + 3.0 * x[:, 4:5]  # one weight differs
    >>> tuner = tuning.DiffPruning(share=0.1, values_lr=0.05, mask_lr=0.05)
    >>> for stage, attachment in tuning.stages(tuner, base, base.names.pieces, seed=0):
    ...     optimiser = tuning.adam(stage, attachment)
    ...     for step in range(200):
    ...         attachment.prepare(step / 200, seed=step)  # draw gates, write working weights
    ...         loss = (attachment.module(x) - y).square().mean()
    ...         loss.backward()
    ...         attachment.collect()  # gradients of the trainable values
    ...         optimiser.step()
    ...         optimiser.zero_grad()

The last attachment holds the result. A delta of it can be saved, and viewed on the base:

    >>> delta = tuning.as_delta(base, attachment.extract())
    >>> delta.updates["weight"].sparse.positions  # 2 of 21 entries are kept
    tensor([4, 7])
    >>> loss.item() < 1e-6
    True

A stage that draws nothing (`Full`, `Head`, masks) runs in the same loop.
"""

from graftwork.tuning._aligned import Aligned as Aligned
from graftwork.tuning._as_delta import as_delta as as_delta
from graftwork.tuning._bitfit import BitFit as BitFit
from graftwork.tuning._bottlenecks import Bottlenecks as Bottlenecks
from graftwork.tuning._diff_pruning import DiffPruning as DiffPruning
from graftwork.tuning._dora import DoRA as DoRA
from graftwork.tuning._fisher_mask import FisherMask as FisherMask
from graftwork.tuning._full import Full as Full
from graftwork.tuning._gradient_mask import GradientMask as GradientMask
from graftwork.tuning._hard_concrete import HardConcrete as HardConcrete
from graftwork.tuning._head import Head as Head
from graftwork.tuning._ia3 import IA3 as IA3
from graftwork.tuning._last_layer import LastLayer as LastLayer
from graftwork.tuning._loop import adam as adam
from graftwork.tuning._loop import stages as stages
from graftwork.tuning._lora import LoRA as LoRA
from graftwork.tuning._low_rank_sparse import LowRankSparse as LowRankSparse
from graftwork.tuning._magnitude import Magnitude as Magnitude
from graftwork.tuning._prompts import PrefixTuning as PrefixTuning
from graftwork.tuning._prompts import PromptTuning as PromptTuning
from graftwork.tuning._random_mask import RandomMask as RandomMask
from graftwork.tuning._table import TUNERS as TUNERS
from graftwork.tuning._tuner import Attachment as Attachment
from graftwork.tuning._tuner import Group as Group
from graftwork.tuning._tuner import Role as Role
from graftwork.tuning._tuner import Stage as Stage
from graftwork.tuning._tuner import StoredType as StoredType
from graftwork.tuning._tuner import Tuner as Tuner
from graftwork.tuning._warnings import TuningWarning as TuningWarning

__all__ = [
    "IA3",
    "TUNERS",
    "Aligned",
    "Attachment",
    "BitFit",
    "Bottlenecks",
    "DiffPruning",
    "DoRA",
    "FisherMask",
    "Full",
    "GradientMask",
    "Group",
    "HardConcrete",
    "Head",
    "LastLayer",
    "LoRA",
    "LowRankSparse",
    "Magnitude",
    "PrefixTuning",
    "PromptTuning",
    "RandomMask",
    "Role",
    "Stage",
    "StoredType",
    "Tuner",
    "TuningWarning",
    "adam",
    "as_delta",
    "stages",
]
