"""Claims: each paper's central comparison as a runnable, judged experiment.

Rules are fixed on pilot seeds 0-2 and judged on seeds 10-12. A failed difference is published as
failed; rules are never bent to results.
"""

from graftwork.claims import diff_pruning, lora, molformer, orca, uwac
from graftwork.claims._claim import JUDGED_SEEDS as JUDGED_SEEDS
from graftwork.claims._claim import PILOT_SEEDS as PILOT_SEEDS
from graftwork.claims._claim import Claim as Claim
from graftwork.claims._claim import DataFile as DataFile
from graftwork.claims._claim import Scale as Scale
from graftwork.claims._claim import find_claim as find_claim
from graftwork.claims._claim import load_result as load_result
from graftwork.claims._claim import published_result as published_result
from graftwork.claims._claim import report as report
from graftwork.claims._claim import run_claim as run_claim
from graftwork.claims._claim import save_result as save_result
from graftwork.claims._rules import AtMost as AtMost
from graftwork.claims._rules import Beats as Beats
from graftwork.claims._rules import ClosesGap as ClosesGap
from graftwork.claims._rules import Equals as Equals
from graftwork.claims._rules import Row as Row
from graftwork.claims._rules import rule_hash as rule_hash

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        diff_pruning.CLAIM,
        diff_pruning.ONE_RATE,
        orca.CLAIM,
        uwac.CLAIM,
        molformer.CLAIM,
        lora.CLAIM,
    )
}
"""Every claim by name: one file and one line here a claim."""

__all__ = [
    "CLAIMS",
    "JUDGED_SEEDS",
    "PILOT_SEEDS",
    "AtMost",
    "Beats",
    "Claim",
    "ClosesGap",
    "DataFile",
    "Equals",
    "Row",
    "Scale",
    "find_claim",
    "load_result",
    "published_result",
    "report",
    "rule_hash",
    "run_claim",
    "save_result",
]
