"""Tuners: one file each."""

from graftwork.tuning._tuner import Attachment as Attachment
from graftwork.tuning._tuner import Group as Group
from graftwork.tuning._tuner import Role as Role
from graftwork.tuning._tuner import Stage as Stage
from graftwork.tuning._tuner import StoredType as StoredType
from graftwork.tuning._tuner import Tuner as Tuner
