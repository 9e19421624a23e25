"""The configuration of a task: each field is a flag and a YAML key of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from graftwork._errors import ConfigError, UnknownNameError
from graftwork.nn import Activation
from graftwork.tasks._comparisons import Phrases
from graftwork.tasks._evaluator import DEFAULT_METRICS
from graftwork.tasks._language_input import Form, Turns
from graftwork.tasks._metrics import METRICS
from graftwork.tasks._pooling import FEATURES, POOLINGS, check_features
from graftwork.tasks._readers import Format
from graftwork.tasks._sequence_metrics import SEQUENCE_METRICS
from graftwork.tasks._signature import SEQUENCES


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which data a task learns from, how the base is called, and what is measured.

    Raises:
        ConfigError: a value is out of range.
        UnknownNameError: a metric, pooling or feature does not exist.
    """

    data: str = "comparisons"
    """"comparisons" (generated), a CSV, TSV, JSONL, Parquet or CoNLL file, a file of arrays (.npy,
    .npz, .safetensors), or a folder with one subfolder of pictures a class."""

    eval_data: str | None = None
    """Rows to evaluate on, in the same format; None takes `eval_share` of `data`."""

    eval_share: float = 0.1
    """Share of `data` to evaluate on without `eval_data`; the same rows for all seeds."""

    format: Format | None = None
    """Format of the files; None tells it by their suffix."""

    header: bool = True
    """CSV and TSV: whether the first row names the columns; if not, they are "0", "1", ..."""

    quoting: bool | None = None
    """CSV and TSV: whether double quotes enclose values; None: in CSV yes, in TSV no."""

    delimiter: str | None = None
    """CSV and TSV: between values; None: comma in CSV, tab in TSV."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Name in the task -> column of the file; empty keeps all columns under their own names."""

    inputs: tuple[str, ...] = ()
    """Columns that are the input, in order; empty: those of `template`, or all columns beside label
    and group where these are one or two."""

    template: tuple[str, ...] = ()
    """One template for each text, e.g. "{title}. {body}"; empty: each input column is a text."""

    label: str = "label"
    """Column of the label or value; of words, their labels; of kind "text", the completion (without
    a column of this name: "completion")."""

    label_columns: tuple[str, ...] = ()
    """Columns of several targets, of which a row may lack some; empty: the one named by `label`."""

    labels: tuple[str, ...] = ()
    """Labels in the order of the outputs; empty: those of the data, sorted. Kind "binary": the
    words for no and yes; empty: 0 and 1, false and true, or no and yes."""

    group: str | None = None
    """Column whose values part the rows for metrics by group, e.g. "accuracy/same"."""

    together: str | None = None
    """Column; neighbouring rows with equal values stay together when the order of training is
    drawn, e.g. two hypotheses about one premise. "comparisons" keeps its contrast pairs together:
    a random mask at 0.5 % then learns in 250 steps what it does not in 320 of rows drawn apart."""

    kind: Literal["classification", "regression", "binary", "multilabel", "tokens", "text"] = (
        "classification"
    )
    """Whether rows have one of several labels, one or more numbers, yes/no answers, any number
    of labels (a list, or a text parted by commas; blank: none), one label a word ("tokens": a list,
    or a text parted by white space or commas), or are text that a language model learns to write
    ("text")."""

    text_form: Form | None = None
    """Kind "text": "completion" (a prompt, and what follows it, which alone is learnt), "text" (all
    of it is learnt) or "messages" (a conversation of {role, content}; the assistant's turns are
    learnt). None: by the columns, "messages", the one of `label`, or neither."""

    turns: Turns = "all"
    """Messages: whether all turns of the assistant are learnt, or the last one only. Some chat
    templates write earlier turns otherwise once others follow: they need "last"."""

    max_new_tokens: int = 64
    """Kind "text": most tokens of an answer."""

    call: Literal["single", "pair", "two_encodings", "array"] | None = None
    """How the base is called (`CALLS`); None: "single" for one text, "two_encodings" for two,
    "array" for arrays and pictures. For two texts a sentence encoder learns better by two encodings
    than as one input."""

    features: tuple[str, ...] = FEATURES
    """Call "two_encodings": what the head sees of the encodings u and v."""

    pooling: str | None = None
    """From positions to one vector (`POOLINGS`); None: the base's own, else "mean" for text and
    "none" for arrays."""

    normalise: bool = False
    """Whether pooled vectors are scaled to length 1. Off also for sentence encoders that do it by
    themselves: a head learns much faster from vectors as they are."""

    max_length: int | None = None
    """Tokens kept of an input; None: what the base reads."""

    head: bool = True
    """Whether the delta adds a head; without, the module's own outputs are trained. Kind "text" has
    none: the base is loaded as a language model."""

    head_hidden: int = 64
    """Units of the head's hidden layer; 0: a linear head, which learns much more slowly on two
    encodings."""

    head_activation: Activation = "tanh"
    """After the hidden layer."""

    head_dropout: float = 0.0
    """Dropout before the head's last layer."""

    metrics: tuple[str, ...] = ()
    """Keys of `METRICS`; the first decides which model is best. Empty: accuracy and loss; pearson,
    spearman and loss; roc_auc, average_precision and loss; of several labels, f1 (its mean over the
    labels), average_precision and loss; of words, entity_f1 (f1_macro where labels are not O,
    B-type and I-type), accuracy and loss; of text, loss, perplexity and accuracy."""

    max_rows: int | None = None
    """Most rows to learn from, drawn by the seed; None: all (20,000 of "comparisons")."""

    eval_rows: int | None = None
    """Most rows to evaluate on; None: all (1,200 of each split of "comparisons")."""

    phrases: Phrases = "short"
    """Data "comparisons": length of the noun phrases to learn from; the other is "eval-length"."""

    image_size: tuple[int, int] = (224, 224)
    """Pictures: height and width that they are resized to."""

    image_mode: Literal["RGB", "L"] = "RGB"
    """Pictures: three channels, or one of grey."""

    array_ids: bool = False
    """Arrays: whether entries are ids (passed on as int64) instead of numbers (float32)."""

    mean: tuple[float, ...] = (0.0,)
    """Arrays and pictures (in [0, 1]): subtracted; one number, or one a channel."""

    std: tuple[float, ...] = (1.0,)
    """Arrays and pictures: divided by, after `mean` is subtracted."""

    def __post_init__(self) -> None:
        known = SEQUENCE_METRICS if self.kind in SEQUENCES else METRICS
        for name in self.metrics:
            if name not in known:
                raise UnknownNameError("metric", name, known)
        kinds = (*DEFAULT_METRICS, *SEQUENCES)
        if self.kind not in kinds:
            raise UnknownNameError("kind", self.kind, kinds)
        self._check_sequence()
        if self.kind in ("classification", "multilabel") and len(self.label_columns) > 1:
            raise ConfigError(
                f"label_columns {self.label_columns}: {self.kind} has one target; use kind "
                "'binary' or 'regression' for several"
            )
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise UnknownNameError("pooling", self.pooling, POOLINGS)
        check_features(self.features)
        if not 0 < self.eval_share < 1:
            raise ConfigError(f"eval_share {self.eval_share} must be between 0 and 1; try 0.1")
        for name, value, least in (
            ("max_rows", self.max_rows, 2),
            ("eval_rows", self.eval_rows, 1),
            ("max_length", self.max_length, 1),
            ("head_hidden", self.head_hidden, 0),
            ("max_new_tokens", self.max_new_tokens, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{name} {value} must be {least} or more")

    def _check_sequence(self) -> None:
        """Refuse what rows of words or of text cannot have."""
        if self.kind not in SEQUENCES:
            if self.text_form is not None:
                raise ConfigError(f"text_form goes with kind 'text', not {self.kind!r}")
            return
        wrong = {
            "call": self.call is not None,
            "label_columns": len(self.label_columns) > 1,
            "normalise": self.normalise,
            "pooling": self.pooling is not None,
            "template": bool(self.template) and self.kind == "tokens",
            "labels": bool(self.labels) and self.kind == "text",
        }
        for name, given in wrong.items():
            if given:
                value = getattr(self, name)
                raise ConfigError(f"{name} {value!r} does not go with kind {self.kind!r}; leave it")

    @property
    def targets(self) -> tuple[str, ...]:
        """Columns of the targets: one or several, or none for text without a completion."""
        if self.kind == "text" and self.text_form != "completion":
            return ()
        return self.label_columns or (self.label,)
