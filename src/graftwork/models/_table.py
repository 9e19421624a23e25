"""Every model by the name that a folder's config.json uses. A new one is one file, one line."""

from __future__ import annotations

from graftwork.models._config import ModelConfig
from graftwork.models._molformer import MolformerConfig
from graftwork.models._policy import PolicyConfig

MODELS: dict[str, type[ModelConfig]] = {
    "molformer": MolformerConfig,
    "policy": PolicyConfig,
}
"""Name -> the frozen config that builds the model."""
