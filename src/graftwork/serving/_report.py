"""What came out of a run, and how it was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graftwork._errors import UnusedTensorError
from graftwork.deltas import NameMap, unconsumed
from graftwork.serving._groups import Group, owners
from graftwork.serving._state import Run
from graftwork.serving._way import Way, called_ports, lengthened, mounted_ports


@dataclass(slots=True, eq=False)
class Report:
    """How a batch was run.

    Attributes:
        together: sites whose rows ran together, by kind.
        apart: path of a module that ran once for each group -> why.
        whole: why the call ran once for each group; "" where it did not.
        paths: how sparse entries were applied -> how many times.
    """

    together: dict[str, int] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)
    whole: str = ""
    paths: dict[str, int] = field(default_factory=dict)


def check_consumed(way: Way, groups: Sequence[Group], run: Run, names: NameMap) -> None:
    """Raise where a touched parameter or a port of a group was not consumed."""
    read = {name for path in run.consumed for name in way.covered.get(path, ())}
    missing = [name for name in owners(names, groups) if name not in read]
    for group in groups:
        ports = [*called_ports(group), *(p for p in mounted_ports(group) if p in way.places)]
        ports += [name for name, _, _ in lengthened(group)]
        missing += [name for name in ports if name not in run.consumed]
    for site in way.sites:
        if site.kind == "groups" and not missing:
            views = [view for view in run.terms[site.path].views if view is not None]
            missing = [name for view in views for name in unconsumed(view)]
    if missing:
        shown = ", ".join(map(repr, dict.fromkeys(missing)))
        raise UnusedTensorError(
            f"planned, but not consumed by the forward: {shown}; the call or this input does not "
            "reach them"
        )


def fill(report: Report, way: Way, run: Run) -> None:
    """Write into `report` how a batch was run."""
    for site in way.sites:
        if site.kind == "groups":
            report.apart[site.path] = site.why
        else:
            report.together[site.kind] = report.together.get(site.kind, 0) + 1
    for path, count in run.paths.items():
        report.paths[path] = report.paths.get(path, 0) + count
