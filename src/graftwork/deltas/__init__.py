"""The artefact: updates, ports, file format, algebra, `view(base, delta)`, row execution."""

from graftwork.deltas._algebra import add as add
from graftwork.deltas._algebra import average as average
from graftwork.deltas._algebra import forget as forget
from graftwork.deltas._algebra import negate as negate
from graftwork.deltas._algebra import scale as scale
from graftwork.deltas._applied import refuse_applied as refuse_applied
from graftwork.deltas._apply import Applied as Applied
from graftwork.deltas._apply import apply as apply
from graftwork.deltas._apply import detach as detach
from graftwork.deltas._between import between as between
from graftwork.deltas._bind import Computed as Computed
from graftwork.deltas._bind import bind as bind
from graftwork.deltas._compress import CompressConfig as CompressConfig
from graftwork.deltas._compress import CompressReport as CompressReport
from graftwork.deltas._compress import compress as compress
from graftwork.deltas._delta import BaseLike as BaseLike
from graftwork.deltas._delta import Delta as Delta
from graftwork.deltas._delta import Fingerprint as Fingerprint
from graftwork.deltas._delta import TensorPrint as TensorPrint
from graftwork.deltas._delta import fingerprint_of as fingerprint_of
from graftwork.deltas._diff import DeltaDiff as DeltaDiff
from graftwork.deltas._diff import TensorDiff as TensorDiff
from graftwork.deltas._diff import diff as diff
from graftwork.deltas._extract import ExtractConfig as ExtractConfig
from graftwork.deltas._extract import Extraction as Extraction
from graftwork.deltas._extract import extract as extract
from graftwork.deltas._extract import low_rank_between as low_rank_between
from graftwork.deltas._file import content_hash as content_hash
from graftwork.deltas._file import dumps as dumps
from graftwork.deltas._file import load as load
from graftwork.deltas._file import loads as loads
from graftwork.deltas._file import save as save
from graftwork.deltas._inspect import Inspection as Inspection
from graftwork.deltas._inspect import LayerReport as LayerReport
from graftwork.deltas._inspect import PortReport as PortReport
from graftwork.deltas._inspect import TensorReport as TensorReport
from graftwork.deltas._inspect import inspect as inspect
from graftwork.deltas._inspect import layer_of as layer_of
from graftwork.deltas._int8 import QUANTISE as QUANTISE
from graftwork.deltas._int8 import Int8Linear as Int8Linear
from graftwork.deltas._int8 import float_of as float_of
from graftwork.deltas._int8 import held_by as held_by
from graftwork.deltas._int8 import is_int8 as is_int8
from graftwork.deltas._int8 import run_linear as run_linear
from graftwork.deltas._merge_report import Conflicts as Conflicts
from graftwork.deltas._merge_report import MergeReport as MergeReport
from graftwork.deltas._merge_report import TensorMerge as TensorMerge
from graftwork.deltas._merging import METHODS as METHODS
from graftwork.deltas._merging import MergeConfig as MergeConfig
from graftwork.deltas._merging import merge as merge
from graftwork.deltas._mounts import input_table as input_table
from graftwork.deltas._mounts import is_causal as is_causal
from graftwork.deltas._mounts import mount as mount
from graftwork.deltas._mounts import place_of as place_of
from graftwork.deltas._mounts import prefix_sizes as prefix_sizes
from graftwork.deltas._names import NameMap as NameMap
from graftwork.deltas._names import Piece as Piece
from graftwork.deltas._names import identity_names as identity_names
from graftwork.deltas._plan import Part as Part
from graftwork.deltas._plan import Weighted as Weighted
from graftwork.deltas._plan import adapted_parameter as adapted_parameter
from graftwork.deltas._plan import check as check
from graftwork.deltas._port_mix import combine_ports as combine_ports
from graftwork.deltas._ports import PORT_KINDS as PORT_KINDS
from graftwork.deltas._ports import build_ports as build_ports
from graftwork.deltas._ports import port_of as port_of
from graftwork.deltas._quantise import STORED as STORED
from graftwork.deltas._quantise import quantise as quantise
from graftwork.deltas._rebase import Rebased as Rebased
from graftwork.deltas._rebase import RebasedTensor as RebasedTensor
from graftwork.deltas._rebase import rebase as rebase
from graftwork.deltas._rows import mark_rows as mark_rows
from graftwork.deltas._rows import rows_differ as rows_differ
from graftwork.deltas._rows import run_rows as run_rows
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
from graftwork.deltas._tree import all_places as all_places
from graftwork.deltas._tree import replace_parameter as replace_parameter
from graftwork.deltas._tree import shared_copy as shared_copy
from graftwork.deltas._view import require_consumed as require_consumed
from graftwork.deltas._view import unconsumed as unconsumed
from graftwork.deltas._view import view as view

__all__ = [
    "METHODS",
    "PORT_KINDS",
    "QUANTISE",
    "STORED",
    "Applied",
    "BaseLike",
    "CompressConfig",
    "CompressReport",
    "Computed",
    "Conflicts",
    "Delta",
    "DeltaDiff",
    "ExtractConfig",
    "Extraction",
    "Fingerprint",
    "Inspection",
    "Int8Blocks",
    "Int8Linear",
    "LayerReport",
    "LowRank",
    "MergeConfig",
    "MergeReport",
    "NameMap",
    "Part",
    "Piece",
    "Port",
    "PortReport",
    "Rebased",
    "RebasedTensor",
    "SeededMask",
    "Sparse",
    "Stored",
    "TensorDiff",
    "TensorMerge",
    "TensorPrint",
    "TensorReport",
    "Update",
    "Weighted",
    "adapted_parameter",
    "add",
    "all_places",
    "apply",
    "average",
    "between",
    "bind",
    "build_ports",
    "check",
    "combine_ports",
    "compress",
    "content_hash",
    "detach",
    "diff",
    "dumps",
    "extract",
    "fingerprint_of",
    "float_of",
    "forget",
    "held_by",
    "identity_names",
    "input_table",
    "inspect",
    "is_causal",
    "is_int8",
    "layer_of",
    "load",
    "loads",
    "low_rank_between",
    "mark_rows",
    "merge",
    "mount",
    "negate",
    "place_of",
    "port_of",
    "prefix_sizes",
    "quantise",
    "rebase",
    "refuse_applied",
    "replace_parameter",
    "require_consumed",
    "rows_differ",
    "run_linear",
    "run_rows",
    "save",
    "scale",
    "seeded_counts",
    "seeded_positions",
    "shared_copy",
    "unconsumed",
    "values_of",
    "view",
]
