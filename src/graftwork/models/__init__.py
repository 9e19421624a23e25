"""Models: architectures built from `graftwork.nn`, each with a config that a folder can hold."""

from graftwork.models._config import ModelConfig as ModelConfig
from graftwork.models._config import config_from_json as config_from_json
from graftwork.models._molformer import Molformer as Molformer
from graftwork.models._molformer import MolformerConfig as MolformerConfig
from graftwork.models._policy import Policy as Policy
from graftwork.models._policy import PolicyConfig as PolicyConfig
from graftwork.models._table import MODELS as MODELS

__all__ = [
    "MODELS",
    "ModelConfig",
    "Molformer",
    "MolformerConfig",
    "Policy",
    "PolicyConfig",
    "config_from_json",
]
