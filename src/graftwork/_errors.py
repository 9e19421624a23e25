"""One error family: every error that graftwork raises on purpose.

    GraftworkError                 root; exit code 2 on the command line
    ├── InputError                 the user's data or argument is wrong (column, label, NaN)
    │   └── UnknownNameError       a name that does not exist; carries "did you mean"
    ├── ConfigError                a run's configuration is wrong (key, value)
    ├── BaseError                  a base cannot be loaded or trusted (pickle, checksum)
    │   └── FingerprintError       a delta was made for another base
    ├── DeltaError                 a delta does not fit, or an operation is illegal
    │   └── DeltaFileError         a file is truncated, foreign, tampered with, too new
    ├── UnsupportedError           a module, term or mode that is not supported
    ├── UnusedTensorError          a planned tensor that the forward did not consume (law 7)
    ├── TrainingError              training cannot go on (NaN loss, no gradient); names the step
    ├── StorageError               a folder is occupied or a disk is full; nothing half-written
    ├── CapacityError              a budget of memory does not suffice, or what it holds is in use
    └── MissingDependencyError     an optional package is absent; prints the install line

Inner code raises the precise cause; public functions add task, tensor, shapes and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraftworkError(Exception):
    """Root of every error that graftwork raises on purpose."""


class InputError(GraftworkError):
    """The user's data or argument is wrong."""


class UnknownNameError(InputError):
    """A name (column, label, method, pattern, task id) that does not exist."""

    def __init__(self, what: str, name: object, known: Iterable[object]) -> None:
        self.what, self.name = what, name
        super().__init__(f"unknown {what} {name!r}{did_you_mean(name, known)}")


class ConfigError(GraftworkError):
    """A run's configuration is wrong."""


class BaseError(GraftworkError):
    """A base cannot be loaded or trusted."""


class FingerprintError(BaseError):
    """A delta was made for another base."""


class DeltaError(GraftworkError):
    """A delta does not fit, or an operation is not legal for its terms."""


class DeltaFileError(DeltaError):
    """A delta file is truncated, foreign, tampered with or too new."""


class UnsupportedError(GraftworkError):
    """A module, term or mode that cannot be supported."""


class UnusedTensorError(GraftworkError):
    """A planned tensor that the forward did not consume."""


class TrainingError(GraftworkError):
    """Training cannot go on."""


class StorageError(GraftworkError):
    """A folder is occupied or a disk is full."""


class CapacityError(GraftworkError):
    """A budget of memory does not suffice, or what it holds is in use."""


class MissingDependencyError(GraftworkError):
    """An optional package is absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}: pip install 'graftwork[{extra}]'"
        )


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return a suffix for an error message: the closest known names, or the list when it is short.

    Example:
        >>> did_you_mean("sentense", ["sentence", "label"])
        "; did you mean 'sentence'? known: 'label', 'sentence'"
    """
    names = sorted(str(k) for k in known)
    hint = closest(str(name), names) or ";"
    shown = ", ".join(repr(n) for n in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{hint} known: {shown or 'none'}"


def closest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?", or "" where nothing is near.

    Example:
        >>> closest("sentense", ["sentence", "label"]), closest("verbose", ["sentence", "label"])
        ("; did you mean 'sentence'?", '')
    """
    # At 0.65 two letters of three may be swapped ("cvs"); unrelated words mostly stay below.
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f"; did you mean {near[0]!r}?" if near else ""
