"""Layers: torch only."""

from graftwork.nn._activations import Activation as Activation
from graftwork.nn._activations import activation_module as activation_module
from graftwork.nn._head import Head as Head
from graftwork.nn._linear import PromotingLinear as PromotingLinear
from graftwork.nn._ports import Bottleneck as Bottleneck
from graftwork.nn._ports import InputEmbedder as InputEmbedder
from graftwork.nn._ports import Prompt as Prompt

__all__ = [
    "Activation",
    "Bottleneck",
    "Head",
    "InputEmbedder",
    "PromotingLinear",
    "Prompt",
    "activation_module",
]
