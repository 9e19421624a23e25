"""Tuners: one file each."""

from graftwork.tuning._diff_pruning import DiffPruning as DiffPruning
from graftwork.tuning._fisher_mask import FisherMask as FisherMask
from graftwork.tuning._full import Full as Full
from graftwork.tuning._gradient_mask import GradientMask as GradientMask
from graftwork.tuning._hard_concrete import HardConcrete as HardConcrete
from graftwork.tuning._head import Head as Head
from graftwork.tuning._last_layer import LastLayer as LastLayer
from graftwork.tuning._magnitude import Magnitude as Magnitude
from graftwork.tuning._random_mask import RandomMask as RandomMask
from graftwork.tuning._table import TUNERS as TUNERS
from graftwork.tuning._tuner import Attachment as Attachment
from graftwork.tuning._tuner import Group as Group
from graftwork.tuning._tuner import Role as Role
from graftwork.tuning._tuner import Stage as Stage
from graftwork.tuning._tuner import StoredType as StoredType
from graftwork.tuning._tuner import Tuner as Tuner
from graftwork.tuning._warnings import TuningWarning as TuningWarning
