"""The error family by its public names; `except GraftworkError` catches all of it."""

from graftwork._errors import (
    BaseError,
    CapacityError,
    ConfigError,
    DeltaError,
    DeltaFileError,
    FingerprintError,
    GraftworkError,
    InputError,
    MissingDependencyError,
    StorageError,
    TrainingError,
    UnknownNameError,
    UnsupportedError,
    UnusedTensorError,
)

__all__ = [
    "BaseError",
    "CapacityError",
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
