"""MoLFormer: a transformer encoder with linear attention and rotary positions.

Shape legend: B rows, L positions, W width of the model, H heads, D = W / H, V vocabulary,
N positions to predict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork._errors import ConfigError
from graftwork.models._config import ModelConfig
from graftwork.nn import (
    ByteDropout,
    RandomFeatures,
    Redraw,
    attention_weights,
    linear_attention,
    rotary,
)


@dataclass(frozen=True, kw_only=True)
class MolformerConfig(ModelConfig):
    """Sizes and options of `Molformer`. The defaults are those of MoLFormer-XL.

    Raises:
        ConfigError: sizes that do not go together.

    Example:
        >>> model = MolformerConfig(vocab_size=50, width=32, layers=2, heads=4).build()
        >>> model(torch.tensor([[0, 5, 1]]))["last_hidden_state"].shape
        torch.Size([1, 3, 32])
    """

    vocab_size: int = 2362
    """Tokens, the special ones counted."""
    width: int = 768
    """Width of the model."""
    layers: int = 12
    """Blocks."""
    heads: int = 12
    """Heads of a block."""
    feedforward: int | None = None
    """Inner width of a block's two-layer network; None is `width`, as published, not 4 times it."""
    features: int = 32
    """Random features of a head."""
    redraw: Redraw = "training"
    """When a block draws a fresh Omega; "always" as published, which makes evaluation random."""
    dropout: float = 0.1
    """Of a block's two branches and inside its network."""
    embedding_dropout: float = 0.2
    """Of the embedded tokens; as published for pretraining."""
    mask_padding: bool = True
    """Whether padded keys are left out. The published pretraining lets them take part (False)."""
    lm_head: bool = True
    """Whether the module has the masked-language-model head; a base is loaded without."""

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.width, self.layers, self.heads, self.features)
        if min(*sizes, self.inner) < 1:
            raise ConfigError(f"sizes of a Molformer must be positive: {self}")
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"width {self.width} does not divide into {self.heads} heads of even width, which "
                "rotary positions need"
            )
        for rate in (self.dropout, self.embedding_dropout):
            if not 0.0 <= rate < 1.0:
                raise ConfigError(f"dropout must be in [0, 1), not {rate}")

    @property
    def inner(self) -> int:
        """Inner width of a block's network."""
        return self.width if self.feedforward is None else self.feedforward

    @property
    def output_width(self) -> int:
        """Width of `last_hidden_state`."""
        return self.width

    def build(self) -> Molformer:
        """Return a new module."""
        return Molformer(self)

    def body(self) -> MolformerConfig:
        """Return the config without the head of pretraining."""
        return replace(self, lm_head=False)


class Molformer(nn.Module):
    """The encoder of Ross et al. (2021), "Large-Scale Chemical Language Representations".

    Embedding, dropout, post-norm blocks, one more LayerNorm. Positions enter only through rotary
    queries and keys, which are turned BEFORE the random feature map: the paper notes that RoFormer
    turns the features instead.

    We deviate in two defaults (`redraw`, `mask_padding`, see `MolformerConfig`), so that the same
    molecule has the same vector in each call and in each batch.

    Args:
        config: sizes and options.
    """

    def __init__(self, config: MolformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.dropout = ByteDropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.lm_head = _LanguageHead(config) if config.lm_head else None
        self.apply(_initialise)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        predict: Tensor | None = None,
    ) -> dict[str, Any]:
        """Encode tokens.

        Args:
            input_ids: `(B, L)` int64.
            attention_mask: `(B, L)`, nonzero where a token counts; None when all do.
            inputs_embeds: `(B, L, W)` in place of `input_ids`.
            predict: `(B, L)` bool, positions whose token the head shall predict.

        Returns:
            "last_hidden_state" `(B, L, W)`, and with `predict` "logits" `(N, V)`.

        Raises:
            ConfigError: neither or both inputs, or `predict` without a head.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("give either input_ids or inputs_embeds")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        x = self.dropout(x)
        mask = attention_mask if self.config.mask_padding else None
        for block in self.blocks:
            x = block(x, mask)
        hidden = self.norm(x)
        if predict is None:
            return {"last_hidden_state": hidden}
        if self.lm_head is None:
            raise ConfigError("this Molformer has no head to predict tokens; build with lm_head")
        return {"last_hidden_state": hidden, "logits": self.lm_head(hidden[predict])}

    def attentions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield each block's implied attention weights `(B, H, L, L)`; memory of one at a time."""
        x = self.dropout(self.embedding(input_ids))
        mask = attention_mask if self.config.mask_padding else None
        for block in self.blocks:
            assert isinstance(block, _Block)
            yield block.attention.weights(x, mask)
            x = block(x, mask)


class _Block(nn.Module):
    """`x = LN(x + drop(attention(x)))`, then `x = LN(x + drop(W2 drop(gelu(W1 x))))`."""

    def __init__(self, config: MolformerConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.attention_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.inner)
        self.down = nn.Linear(config.inner, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = ByteDropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        inner = self.dropout(functional.gelu(self.up(x)))
        out: Tensor = self.norm(x + self.dropout(self.down(inner)))
        return out


class _Attention(nn.Module):
    def __init__(self, config: MolformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.feature_map = RandomFeatures(
            config.width // config.heads, config.features, config.redraw
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        # sums over a whole sequence and a division by them do not bear 16 bits
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.query.weight.dtype)
            query, key = self._features(x)
            value = self._split(self.value(x)).to(query.dtype)
            mixed = linear_attention(query, key, value, mask)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2).to(x.dtype))
        return out

    def weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return attention_weights(*self._features(x), mask)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(B, H, L, F)` features of queries and keys, in float32 or wider."""
        omega = self.feature_map.draw()
        query, key = (
            self.feature_map(rotary(self._split(projection(x)).to(_wide(x))), omega)
            for projection in (self.query, self.key)
        )
        return query, key

    def _split(self, x: Tensor) -> Tensor:
        out: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return out


class _LanguageHead(nn.Module):
    def __init__(self, config: MolformerConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.decoder = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.norm(functional.gelu(self.transform(hidden))))
        return out


def _initialise(module: nn.Module) -> None:
    """Draw weights as BERT does, normal with deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
