"""The artefact: updates, ports, file format, algebra, `view(base, delta)`, row execution."""

from graftwork.deltas._delta import BaseLike as BaseLike
from graftwork.deltas._delta import Delta as Delta
from graftwork.deltas._delta import Fingerprint as Fingerprint
from graftwork.deltas._delta import TensorPrint as TensorPrint
from graftwork.deltas._file import content_hash as content_hash
from graftwork.deltas._file import dumps as dumps
from graftwork.deltas._file import load as load
from graftwork.deltas._file import loads as loads
from graftwork.deltas._file import save as save
from graftwork.deltas._names import NameMap as NameMap
from graftwork.deltas._names import Piece as Piece
from graftwork.deltas._names import identity_names as identity_names
from graftwork.deltas._quantise import STORED as STORED
from graftwork.deltas._quantise import quantise as quantise
from graftwork.deltas._seeded import seeded_counts as seeded_counts
from graftwork.deltas._seeded import seeded_positions as seeded_positions
from graftwork.deltas._terms import Int8Blocks as Int8Blocks
from graftwork.deltas._terms import LowRank as LowRank
from graftwork.deltas._terms import Port as Port
from graftwork.deltas._terms import SeededMask as SeededMask
from graftwork.deltas._terms import Sparse as Sparse
from graftwork.deltas._terms import Stored as Stored
from graftwork.deltas._terms import Update as Update
from graftwork.deltas._terms import values_of as values_of
from graftwork.deltas._tree import replace_parameter as replace_parameter
from graftwork.deltas._tree import shared_copy as shared_copy
