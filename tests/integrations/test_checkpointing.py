"""Activations that are recomputed: the same gradients, less kept, in every stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from graftwork.bases import load
from graftwork.errors import UnsupportedError
from graftwork.integrations import DeltaCallback, TunedModule
from graftwork.tuning import DiffPruning, DoRA, LoRA, RandomMask, Tuner
from tests.integrations.toys import make_base, make_rows, make_trainer

ENCODER = ("encoder.*.weight",)
PRUNING = DiffPruning(share=0.2, groups=None, values_lr=0.02, mask_lr=0.02, head_lr=0.02)
TUNERS = {
    "lora": LoRA(rank=4, dropout=0.2),
    "dora": DoRA(rank=4),
    "random_mask": RandomMask(share=0.3),
    "diff_pruning": PRUNING,
}


def make_tuned(tuner: Tuner, dropout: float = 0.0) -> TunedModule:
    return TunedModule(make_base(dropout), tuner, ENCODER, heads=["classifier"])


def one_update(tuned: TunedModule) -> tuple[list[Tensor], int]:
    """Return the gradients of one update, and the bytes that its forward pass kept for them."""
    rows = make_rows()
    ids, labels = (torch.stack([row[k] for row in rows]) for k in ("input_ids", "labels"))
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tuned.prepare(0.0, update=0)
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = tuned(input_ids=ids, labels=labels).loss
    loss.backward()
    tuned.collect()
    return [p.grad.clone() for p in tuned.trained() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("name", TUNERS)
def test_gradients_are_the_same_and_less_is_kept(name: str) -> None:
    plain, checkpointed = (make_tuned(TUNERS[name], dropout=0.1) for _ in range(2))
    with torch.no_grad():
        for one, other in zip(plain.trained(), checkpointed.trained(), strict=True):
            # away from zero, where a factor has no gradient
            noise = 0.05 * torch.randn(one.shape, generator=torch.Generator().manual_seed(2))
            one.add_(noise)
            other.add_(noise)
    checkpointed.activation_checkpointing_enable()
    (wanted, most), (found, least) = one_update(plain), one_update(checkpointed)
    assert len(wanted) == len(plain.trained())
    assert sum(float(g.abs().sum()) for g in wanted) > 0.0
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one, other)
    assert least < 0.3 * most, (least, most)
    layers = checkpointed.base.model.bert.encoder.layer
    assert not any(layer.gradient_checkpointing for layer in layers)


def test_a_trainer_gives_the_same_delta_through_all_stages(tmp_path: Path) -> None:
    made = []
    for checkpointing in (False, True):
        tuned = make_tuned(PRUNING)
        callback = DeltaCallback(tuned)
        settings = {"activation_checkpointing": checkpointing}
        make_trainer(tuned, tuned, tmp_path, [callback], **settings).train()
        assert tuned.module.is_activation_checkpointing == checkpointing
        made.append([p.detach().clone() for p in tuned.trained()])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_what_cannot_be_checkpointed_is_refused() -> None:
    tuned = make_tuned(TUNERS["lora"])
    with pytest.raises(UnsupportedError, match="use_reentrant=True gives no gradient"):
        tuned.gradient_checkpointing_enable({"use_reentrant": True})
    plain = TunedModule(load(nn.Linear(3, 2)), TUNERS["random_mask"])
    with pytest.raises(UnsupportedError, match=r"Linear has no activation_checkpointing_enable"):
        plain.activation_checkpointing_enable()
