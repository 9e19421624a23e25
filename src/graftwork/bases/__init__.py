"""Bases: load or save a frozen pretrained model with canonical names and a content fingerprint."""

from graftwork.bases._base import Base as Base
from graftwork.bases._blank import blank as blank
from graftwork.bases._canonical import canonical_names as canonical_names
from graftwork.bases._load import MINILM_SHA256 as MINILM_SHA256
from graftwork.bases._load import load as load
from graftwork.bases._load import load_language_model as load_language_model
from graftwork.bases._load import load_module as load_module
from graftwork.bases._prints import print_of as print_of
from graftwork.bases._save import save as save

__all__ = [
    "MINILM_SHA256",
    "Base",
    "blank",
    "canonical_names",
    "load",
    "load_language_model",
    "load_module",
    "print_of",
    "save",
]
