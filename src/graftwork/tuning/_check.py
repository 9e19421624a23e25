"""Checks that the configs of the tuners share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from graftwork._errors import ConfigError, DeltaError, UnknownNameError
from graftwork.deltas import Port, Update


def check_rates(**rates: float) -> None:
    """Raise unless each learning rate is finite and above 0.

    Raises:
        ConfigError: names the field and its value.
    """
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate > 0.0):
            raise ConfigError(f"{name}: a learning rate above 0, not {rate}")


def check_share(name: str, share: float, *, closed_below: bool = False) -> None:
    """Raise unless `share` lies in (0, 1), or in [0, 1) with `closed_below`.

    Raises:
        ConfigError: names the field and its value.
    """
    if not (0.0 < share < 1.0 or (closed_below and share == 0.0)):
        raise ConfigError(f"{name}: a part in {'[' if closed_below else '('}0, 1), not {share}")


def check_kept(share: float) -> None:
    """Raise unless `share` can be a part of the entries that is kept.

    Raises:
        ConfigError: `share` is outside (0, 1].
    """
    if not (math.isfinite(share) and 0.0 < share <= 1.0):
        raise ConfigError(f"share: a part of the targets' entries in (0, 1], not {share}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of `choices`.

    Raises:
        UnknownNameError: names the field, with "did you mean".
    """
    known = tuple(choices)
    if value not in known:
        raise UnknownNameError(name, value, known)


def refuse_others(
    who: str,
    updates: Mapping[str, Update],
    ports: Mapping[str, Port],
    term: str,
    targets: Iterable[str],
) -> None:
    """Raise unless each update is one `term` of a target, and no module lies inside the base.

    Raises:
        DeltaError: names the first that is something else.
    """
    known = set(targets)
    for name, update in updates.items():
        if name not in known:
            raise DeltaError(f"the delta changes {name!r}, which is no target of {who}")
        if update.terms != (term,):
            raise DeltaError(
                f"the delta changes {name!r} by {' and '.join(update.terms)}, {who} trains "
                f"{term or 'heads only'}; continue with the tuner it was made by"
            )
    for name in ports:
        raise DeltaError(f"the delta has a module {name!r} inside the base, which {who} has not")
