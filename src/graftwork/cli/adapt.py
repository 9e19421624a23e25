"""`graftwork adapt`: learn a delta; a run is flags or one YAML, 1:1 with its config's fields."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from graftwork._errors import UnknownNameError
from graftwork.cli._config import (
    commented_yaml,
    flag_class,
    full_flags,
    named_choices,
    value_of,
)
from graftwork.cli._shared import emit, existing, out, parse, share, size

if TYPE_CHECKING:
    from graftwork.training import DeltaOutcome, OrcaConfig, RunConfig, RunResult

PROG = "graftwork adapt"
HELP = """Learn a delta for your data; the base never changes.
  - The flags are the fields of the configuration; they override the YAML of --config.
  - A group may be left out where the name is unique: --steps is --train.steps.
  - --tuner NAME --help shows the flags of a tuner (now: {tuner}). NAME is one of
    {tuners}

example: graftwork adapt --base minilm --data reviews.csv --inputs sentence \\
             --tuner diff_pruning --share 0.005 --out runs/reviews
         graftwork adapt --tuner diff_pruning --print-config > run.yaml
         graftwork adapt --config run.yaml --seed 1 --out runs/reviews-1
         graftwork adapt --recipe orca --data patients.csv --label outcome --out runs/patients"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork adapt` beside the fields of `RunConfig`."""

    config: Path | None = None
    """YAML file with the run's configuration; flags override it."""
    print_config: bool = False
    """Print the whole configuration as YAML, with what each field means, and stop."""
    resume: bool = False
    """Go on with the run in the folder --out, where there is one."""
    tuner_name: Annotated[str, tyro.conf.arg(name="tuner")] = ""
    """Name of the tuner; one other than the YAML's begins from its own defaults; default: the
    YAML's, else random_mask."""
    step_name: Annotated[str, tyro.conf.arg(name="step")] = ""
    """Name of the step; default: the YAML's, else plain_sum."""
    recipe: Literal["orca"] | None = None
    """"orca" reads foreign data (tables of numbers and categories, series, fields) with a text
    base: a port embeds the rows and is aligned before the tuner starts; see --align.*."""
    json: bool = False
    """Print one JSON document: {folder, delta, bytes, report, metrics, trained, steps, ...}."""


def main(words: list[str]) -> None:
    """Run `graftwork adapt`."""
    config, align, flags = read(words)
    if flags.print_config:
        from graftwork.training import to_tree

        print(commented_yaml(to_tree(config), config))
        if align is not None:
            print(f"align:\n{commented_yaml(asdict(align), align, 2)}")
        return
    from graftwork.training import adapt, orca, write_report

    if align is None:
        result = adapt(config, resume=flags.resume)
    else:
        result = orca(config, align, resume=flags.resume)
    assert result.folder is not None
    document = summary(result, write_report(result.folder))
    if flags.json:
        emit(document)
    else:
        show(document)


def read(words: list[str]) -> tuple[RunConfig, OrcaConfig | None, Flags]:
    """Return the configuration that YAML and flags give, that of the recipe, and the other flags.

    Raises:
        UnknownNameError: an unknown flag, tuner or step.
        ConfigError: an unknown key or impossible value.
    """
    from graftwork.training import OrcaFields, RunConfig
    from graftwork.tuning import TUNERS

    base, align = _started(words)
    base = _choose(base, words)
    kinds = (RunConfig,) if align is None else (RunConfig, OrcaFields)
    kind = flag_class(kinds, _chosen(base), Flags)
    names = [f.name for f in fields(RunConfig)]
    begun = {} if align is None else {"align": align}
    default = kind(**{name: getattr(base, name) for name in names}, **begun)
    now = next(name for name, member in TUNERS.items() if type(base.tuner) is member)
    flags = parse(
        kind,
        full_flags(words, kind, PROG, _of_others(base)),
        prog=PROG,
        description=HELP.format(tuners=_wrapped(f"{', '.join(TUNERS)}."), tuner=now),
        default=default,
        registry=named_choices(),
    )
    config = RunConfig(**{name: getattr(flags, name) for name in names})
    other = Flags(**{f.name: getattr(flags, f.name) for f in fields(Flags)})
    return config, getattr(flags, "align", None), other


def _started(words: list[str]) -> tuple[RunConfig, OrcaConfig | None]:
    """Return what flags override: the YAML of --config, or the defaults."""
    from graftwork.training import OrcaConfig, RunConfig, from_yaml, orca_from_yaml

    path, recipe = value_of(words, "--config"), value_of(words, "--recipe")
    if path is None:
        return RunConfig(), OrcaConfig() if recipe == "orca" else None
    file = existing(Path(path), "configuration")
    # The YAML of such a run says by its key "align" what recipe it is of.
    if recipe == "orca" or re.search(r"^align:", file.read_text(errors="replace"), re.MULTILINE):
        return orca_from_yaml(file)
    return from_yaml(file), None


def summary(result: RunResult[DeltaOutcome], report: Path) -> dict[str, Any]:
    """Return what is printed of a run, as JSON."""
    from graftwork.deltas import inspect

    ledger = inspect(result.delta)
    entries = ledger.provenance["target_entries"]
    folder = result.folder
    assert folder is not None
    return {
        "folder": str(folder),
        "delta": str(folder / result.summary["outcome"]["file"]),
        "report": str(report),
        "bytes": ledger.bytes,
        "changed": sum(layer.changed for layer in ledger.layers),
        "entries": entries,
        "trained": dict(result.summary["trained"]),
        "steps": result.summary["steps"],
        "seconds": result.summary["seconds"],
        "next": next_command(folder, result.delta.signature),
        "metrics": dict(result.metrics),
    }


def show(document: Mapping[str, Any]) -> None:
    """Print what a run yielded, and the command to try next."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in document["metrics"].items():
        table.add_row(escape(name), f"{value:.4g}")
    changed, entries = document["changed"], document["entries"]
    shown = f" ({share(changed / entries)})" if entries else ""
    table.add_row("weights changed", f"{changed:,} of {entries:,}{shown}")
    for role, count in document["trained"].items():
        table.add_row(f"trained {role}", f"{count:,}")
    table.add_row("delta", f"{size(document['bytes'])}")
    table.add_row("time", f"{document['seconds']:.1f} s, {document['steps']:,} steps")
    console = out()
    console.print(table)
    console.print(f"delta   {document['delta']}", markup=False, soft_wrap=True)
    console.print(f"report  {document['report']}", markup=False, soft_wrap=True)
    console.print(f"next    {document['next']}", markup=False, soft_wrap=True)


def next_command(folder: Path, signature: Mapping[str, Any]) -> str:
    """Return the command that predicts with the delta of a run."""
    texts = " ".join(f'"{name.upper()}"' for name in signature["fields"])
    rows = f"--text {texts}" if signature["array"] is None else "--data ROWS"
    return f"graftwork predict {shlex.quote(str(folder))} {rows}"


def _of_others(config: RunConfig) -> dict[str, str]:
    """Return flag -> what to say where other tuners or steps have it and this run's have not."""
    from graftwork.steps import STEPS
    from graftwork.tuning import TUNERS

    says: dict[str, str] = {}
    tables: dict[str, Mapping[str, type]] = {"tuner": TUNERS, "step": STEPS}
    for family, table in tables.items():
        flags = {n: {f.name.replace("_", "-") for f in fields(kind)} for n, kind in table.items()}
        now = next(n for n, kind in table.items() if type(getattr(config, family)) is kind)
        for flag in set().union(*flags.values()) - flags[now]:
            having = ", ".join(name for name in table if flag in flags[name])
            text = f"the {family} {now!r} has no {flag}; these have one: {having}"
            says |= {flag: text, f"{family}.{flag}": text}
    return says


def _choose(config: RunConfig, words: list[str]) -> RunConfig:
    """Return `config` with the tuner and step that flags name, from their own defaults."""
    from graftwork.steps import STEPS
    from graftwork.tuning import TUNERS

    tables: dict[str, Mapping[str, type]] = {"tuner": TUNERS, "step": STEPS}
    for field, table in tables.items():
        name = value_of(words, f"--{field}")
        if name is None:
            continue
        name = name.replace("-", "_")
        if name not in table:
            raise UnknownNameError(field, name, table)
        if type(getattr(config, field)) is not table[name]:
            config = replace(config, **{field: table[name]()})
    return config


def _chosen(config: RunConfig) -> dict[str, type]:
    return {"tuner": type(config.tuner), "step": type(config.step)}


def _wrapped(names: str) -> str:
    """Return names in lines that go on where the help's do."""
    return textwrap.fill(names, width=92).replace("\n", "\n    ")
