"""The battery of law 12: small models of every awkward kind, built in code with fixed seeds.

Each `Case` gives a model, inputs, outputs and a task that can be learnt, so that deltas are always
tested after real training:

    case = CASES["bert"]
    module = case.build()                      # eval mode, requires_grad True, float32
    batch = case.batch(rows=32, seed=0)        # inputs, targets in {0, 1}, rows
    logits = case.call(module, batch.inputs)   # (B, 2)
    loss = case.loss(module, batch)            # (B,) cross entropy
    train_full(case, module)                   # ordinary fine-tuning of every parameter

Shapes: B rows, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork._batch import Batch

VOCABULARY, LENGTH, WIDTH = 40, 6, 16
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One model of the battery.

    Attributes:
        name: key in `CASES`.
        make: builds the module under the current seed.
        make_inputs: (rows, generator) -> tree of tensors.
        call: (module, inputs) -> logits `(B, 2)`.
        label: inputs -> `(B,)` int64 in {0, 1}, a rule that the model can learn.
        learning_rate: AdamW's, at which full fine-tuning learns the rule in 60 steps.
    """

    name: str
    make: Callable[[], nn.Module]
    make_inputs: Callable[[int, torch.Generator], Inputs]
    call: Callable[[nn.Module, Inputs], Tensor]
    label: Callable[[Inputs], Tensor]
    learning_rate: float = 3e-3

    def build(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        """Return the module in eval mode; the same seed gives the same bits."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.make()
        return module.to(dtype).eval()

    def batch(self, rows: int = 32, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
        """Return rows with their labels."""
        inputs = self.make_inputs(rows, torch.Generator().manual_seed(seed))
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        return Batch(cast, self.label(inputs), torch.arange(rows))

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return cross entropies `(B,)`."""
        assert batch.targets is not None
        return F.cross_entropy(self.call(module, batch.inputs), batch.targets, reduction="none")


def train_full(
    case: Case, module: nn.Module, steps: int = 60, rows: int = 32
) -> tuple[float, float]:
    """Fine-tune every parameter of `module` in place; return the loss before and after."""
    test = case.batch(128, seed=10_000, dtype=next(module.parameters()).dtype)
    before = case.loss(module, test).mean().item()
    optimiser = torch.optim.AdamW(module.parameters(), lr=case.learning_rate, weight_decay=0.0)
    for step in range(steps):
        optimiser.zero_grad()
        batch = case.batch(rows, seed=step + 1, dtype=next(module.parameters()).dtype)
        case.loss(module, batch).mean().backward()
        optimiser.step()
    module.zero_grad()
    return before, case.loss(module, test).mean().item()


def _tokens(rows: int, generator: torch.Generator) -> Inputs:
    half = (VOCABULARY - 5) // 2
    tokens = torch.randint(5, 5 + half, (rows, LENGTH), generator=generator)
    high = torch.randint(0, 2, (rows, 1), generator=generator)
    return {"input_ids": tokens + half * high}


def _images(rows: int, generator: torch.Generator) -> Inputs:
    images = torch.randn(rows, 3, 8, 8, generator=generator) * 0.5
    sign = torch.randint(0, 2, (rows, 1, 1), generator=generator) * 2.0 - 1.0
    images[:, 0] += sign
    return {"pixel_values": images}


def _points(rows: int, generator: torch.Generator) -> Inputs:
    points = torch.randn(rows, LENGTH, WIDTH, generator=generator) * 0.5
    sign = torch.randint(0, 2, (rows, 1), generator=generator) * 2.0 - 1.0
    points[:, :, 0] += sign
    return {"x": points}


def _token_rule(inputs: Inputs) -> Tensor:
    return (inputs["input_ids"][:, 0] >= 5 + (VOCABULARY - 5) // 2).long()


def _image_rule(inputs: Inputs) -> Tensor:
    return (inputs["pixel_values"][:, 0].mean(dim=(1, 2)) > 0).long()


def _point_rule(inputs: Inputs) -> Tensor:
    return (inputs["x"][:, :, 0].mean(dim=1) > 0).long()


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=WIDTH,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_labels=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


class ConvNet(nn.Module):
    """Convolutions with batch normalisation whose running statistics are not the initial ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, WIDTH, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(WIDTH)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.out(x.mean(dim=(2, 3)))


def _conv() -> nn.Module:
    module = ConvNet().train()
    with torch.no_grad():
        for _ in range(5):
            module(torch.randn(16, 3, 8, 8) * 2 + 0.3)
    return module


class LstmTagger(nn.Module):
    """Embedding, two bidirectional LSTM layers, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * WIDTH, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(input_ids))
        return self.out(hidden.mean(dim=1))


class Attention(nn.Module):
    """A bare `nn.MultiheadAttention`, whose projections live in one fused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.out((x + mixed).mean(dim=1))


class Encoder(nn.Module):
    """`nn.TransformerEncoder`: in eval mode without gradients a layer is one fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(dim=1))


class Experts(nn.Module):
    """A mixture of experts held in bare 3-D parameters, routed softly to the best two of four."""

    def __init__(self, experts: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts)
        self.gate_up = nn.Parameter(torch.randn(experts, WIDTH, 2 * hidden) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, WIDTH) / hidden**0.5)

    def forward(self, x: Tensor) -> Tensor:
        chosen, index = self.router(x).topk(2, dim=-1)
        weights = torch.zeros(*x.shape[:-1], self.gate_up.shape[0], dtype=x.dtype, device=x.device)
        weights = weights.scatter(-1, index, chosen.softmax(dim=-1))
        gate, up = torch.einsum("btd,edh->beth", x, self.gate_up).chunk(2, dim=-1)
        each = torch.einsum("beth,ehd->betd", F.silu(gate) * up, self.down)
        return torch.einsum("betd,bte->btd", each, weights)


class Mixture(nn.Module):
    """Two expert blocks with residuals and a linear output."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Experts(), Experts()])
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.out(x.mean(dim=1))


def _call(module: nn.Module, inputs: Inputs) -> Tensor:
    return module(*inputs.values())


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "bert",
            _bert,
            _tokens,
            lambda m, i: m(**i).logits[:, 0, :2],
            _token_rule,
            learning_rate=1e-2,
        ),
        Case(
            "gpt2",
            _gpt2,
            _tokens,
            lambda m, i: m(**i, use_cache=False).logits[:, -1, :2],
            _token_rule,
            learning_rate=1e-2,
        ),
        Case("conv", _conv, _images, _call, _image_rule),
        Case("lstm", LstmTagger, _tokens, _call, _token_rule, learning_rate=1e-2),
        Case("attention", Attention, _points, _call, _point_rule, learning_rate=1e-2),
        Case("encoder", Encoder, _points, _call, _point_rule),
        Case("experts", Mixture, _points, _call, _point_rule),
        Case("vit", _vit, _images, lambda m, i: m(**i).logits, _image_rule),
    )
}
