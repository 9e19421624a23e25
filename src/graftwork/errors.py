"""The error family by its public names; `except GraftworkError` catches all of it."""

from graftwork._errors import BaseError as BaseError
from graftwork._errors import ConfigError as ConfigError
from graftwork._errors import DeltaError as DeltaError
from graftwork._errors import DeltaFileError as DeltaFileError
from graftwork._errors import FingerprintError as FingerprintError
from graftwork._errors import GraftworkError as GraftworkError
from graftwork._errors import InputError as InputError
from graftwork._errors import MissingDependencyError as MissingDependencyError
from graftwork._errors import StorageError as StorageError
from graftwork._errors import TrainingError as TrainingError
from graftwork._errors import UnknownNameError as UnknownNameError
from graftwork._errors import UnsupportedError as UnsupportedError
from graftwork._errors import UnusedTensorError as UnusedTensorError

__all__ = [
    "BaseError",
    "ConfigError",
    "DeltaError",
    "DeltaFileError",
    "FingerprintError",
    "GraftworkError",
    "InputError",
    "MissingDependencyError",
    "StorageError",
    "TrainingError",
    "UnknownNameError",
    "UnsupportedError",
    "UnusedTensorError",
]
