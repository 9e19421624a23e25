"""Molecules as SMILES strings: checks, splits, a tokenizer, pretraining, probes, attention."""

from graftwork.domains.molecules._attention import AttentionMap as AttentionMap
from graftwork.domains.molecules._attention import attention_by_distance as attention_by_distance
from graftwork.domains.molecules._attention import attention_map as attention_map
from graftwork.domains.molecules._attention import distance_correlation as distance_correlation
from graftwork.domains.molecules._chemistry import bond_distances as bond_distances
from graftwork.domains.molecules._chemistry import scaffold_of as scaffold_of
from graftwork.domains.molecules._datasets import MOLECULE_SETS as MOLECULE_SETS
from graftwork.domains.molecules._datasets import MoleculeData as MoleculeData
from graftwork.domains.molecules._datasets import MoleculeSet as MoleculeSet
from graftwork.domains.molecules._datasets import molecule_data as molecule_data
from graftwork.domains.molecules._datasets import read_molecule_set as read_molecule_set
from graftwork.domains.molecules._embed import Embedder as Embedder
from graftwork.domains.molecules._embed import Embeddings as Embeddings
from graftwork.domains.molecules._masking import KEEP as KEEP
from graftwork.domains.molecules._masking import MaskedTokenScorer as MaskedTokenScorer
from graftwork.domains.molecules._masking import Masking as Masking
from graftwork.domains.molecules._masking import masked_token_loss as masked_token_loss
from graftwork.domains.molecules._masking import predict_hidden as predict_hidden
from graftwork.domains.molecules._pretrain import PretrainConfig as PretrainConfig
from graftwork.domains.molecules._pretrain import pretrain as pretrain
from graftwork.domains.molecules._probe import probe as probe
from graftwork.domains.molecules._probe import token_counts as token_counts
from graftwork.domains.molecules._report import NOTES as NOTES
from graftwork.domains.molecules._report import PROBLEMS as PROBLEMS
from graftwork.domains.molecules._report import Molecule as Molecule
from graftwork.domains.molecules._report import MoleculeReport as MoleculeReport
from graftwork.domains.molecules._report import check_molecules as check_molecules
from graftwork.domains.molecules._splits import SPLITS as SPLITS
from graftwork.domains.molecules._splits import Split as Split
from graftwork.domains.molecules._splits import split_molecules as split_molecules
from graftwork.domains.molecules._stream import BUCKETS as BUCKETS
from graftwork.domains.molecules._stream import PUBLISHED_BUCKETS as PUBLISHED_BUCKETS
from graftwork.domains.molecules._stream import MaskedStream as MaskedStream
from graftwork.domains.molecules._stream import padding_share as padding_share
from graftwork.domains.molecules._tokenizer import MAX_LENGTH as MAX_LENGTH
from graftwork.domains.molecules._tokenizer import SMILES_PATTERN as SMILES_PATTERN
from graftwork.domains.molecules._tokenizer import atom_tokens as atom_tokens
from graftwork.domains.molecules._tokenizer import smiles_tokenizer as smiles_tokenizer
from graftwork.domains.molecules._tokenizer import vocabulary_of as vocabulary_of

__all__ = [
    "BUCKETS",
    "KEEP",
    "MAX_LENGTH",
    "MOLECULE_SETS",
    "NOTES",
    "PROBLEMS",
    "PUBLISHED_BUCKETS",
    "SMILES_PATTERN",
    "SPLITS",
    "AttentionMap",
    "Embedder",
    "Embeddings",
    "MaskedStream",
    "MaskedTokenScorer",
    "Masking",
    "Molecule",
    "MoleculeData",
    "MoleculeReport",
    "MoleculeSet",
    "PretrainConfig",
    "Split",
    "atom_tokens",
    "attention_by_distance",
    "attention_map",
    "bond_distances",
    "check_molecules",
    "distance_correlation",
    "masked_token_loss",
    "molecule_data",
    "padding_share",
    "predict_hidden",
    "pretrain",
    "probe",
    "read_molecule_set",
    "scaffold_of",
    "smiles_tokenizer",
    "split_molecules",
    "token_counts",
    "vocabulary_of",
]
