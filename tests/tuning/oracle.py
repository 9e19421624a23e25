"""Diff pruning in plain autograd: the naive reference that the tiled gates must meet."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from graftwork.tuning import HardConcrete


def naive_step(model, loss, weights, values, alphas, group_alphas, group_of, draws, shift=0.0):
    """Return loss and gradients of one gate step, all by autograd.

    `weights`, `values`, `alphas`, `draws` map a parameter's name to a tensor of its shape;
    `group_of` maps it to an index tensor that broadcasts to that shape, or None without groups.
    """
    gate = HardConcrete()
    values = {n: v.clone().requires_grad_() for n, v in values.items()}
    alphas = {n: a.clone().requires_grad_() for n, a in alphas.items()}
    grouped = group_alphas.clone().requires_grad_()
    adapted: dict[str, Tensor] = {}
    group_gates = gate.sample(grouped - shift, draws[None]) if grouped.numel() else None
    for name, weight in weights.items():
        z = gate.sample(alphas[name] - shift, draws[name])
        if group_gates is not None:
            z = z * group_gates[group_of[name]]
        adapted[name] = weight + z * values[name]
    value = loss(lambda *args: functional_call(model, adapted, args))
    value.backward()
    grads = [torch.cat([t.grad.reshape(-1) for t in d.values()]) for d in (values, alphas)]
    return value.detach(), *grads, grouped.grad
