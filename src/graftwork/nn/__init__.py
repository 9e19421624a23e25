"""Layers: torch only."""

from graftwork.nn._activations import Activation as Activation
from graftwork.nn._activations import activation_module as activation_module
from graftwork.nn._dropout import ByteDropout as ByteDropout
from graftwork.nn._embedders import Codes as Codes
from graftwork.nn._embedders import Columns as Columns
from graftwork.nn._embedders import OutputNorm as OutputNorm
from graftwork.nn._embedders import Patches as Patches
from graftwork.nn._embedders import patch_of as patch_of
from graftwork.nn._head import Head as Head
from graftwork.nn._linear import PromotingLinear as PromotingLinear
from graftwork.nn._linear_attention import attention_weights as attention_weights
from graftwork.nn._linear_attention import linear_attention as linear_attention
from graftwork.nn._ports import Bottleneck as Bottleneck
from graftwork.nn._ports import InputEmbedder as InputEmbedder
from graftwork.nn._ports import Prefix as Prefix
from graftwork.nn._ports import Prompt as Prompt
from graftwork.nn._random_features import RandomFeatures as RandomFeatures
from graftwork.nn._random_features import Redraw as Redraw
from graftwork.nn._random_features import orthogonal_features as orthogonal_features
from graftwork.nn._rotary import rotary as rotary

__all__ = [
    "Activation",
    "Bottleneck",
    "ByteDropout",
    "Codes",
    "Columns",
    "Head",
    "InputEmbedder",
    "OutputNorm",
    "Patches",
    "Prefix",
    "PromotingLinear",
    "Prompt",
    "RandomFeatures",
    "Redraw",
    "activation_module",
    "attention_weights",
    "linear_attention",
    "orthogonal_features",
    "patch_of",
    "rotary",
]
