"""What an adapter_config.json of PEFT says, every option of it accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graftwork._errors import DeltaFileError, UnsupportedError

Kind = Literal["LORA", "IA3", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"]

PROMPTS: Mapping[Kind, Literal["prompt", "prefix"]] = {
    "PROMPT_TUNING": "prompt",
    # its network is run before saving: the file holds the vectors that it gave
    "P_TUNING": "prompt",
    "PREFIX_TUNING": "prefix",
}
"""Methods whose file holds vectors instead of changed modules -> kind of port."""

_WITHOUT_EFFECT = frozenset(
    {
        *(
            "auto_mapping",
            "base_model_name_or_path",
            "corda_config",
            "eva_config",
            "inference_mode",
        ),
        *("init_ia3_weights", "loftq_config", "lora_dropout", "lora_ga_config"),
        *("megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision"),
        *("runtime_config", "task_type", "velora_config"),
        # the module's own type decides, in PEFT as here
        "fan_in_fan_out",
    }
)
"""Options that say how an adapter was made or run, and change nothing of a finished one."""

_VIRTUAL = frozenset(
    {
        *("modules_to_save", "num_attention_heads", "num_layers", "num_transformer_submodules"),
        *("num_virtual_tokens", "token_dim"),
        # how the vectors were made: the file holds what came of it
        *("encoder_dropout", "encoder_hidden_size", "encoder_num_layers"),
        *("encoder_reparameterization_type", "init_weights", "prefix_projection"),
        *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs"),
        "tokenizer_name_or_path",
    }
)

_READ: Mapping[Kind, frozenset[str]] = {
    "LORA": frozenset(
        {
            *("alpha_pattern", "bias", "exclude_modules", "init_lora_weights", "layers_pattern"),
            *("layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save", "r"),
            *("rank_pattern", "target_modules", "use_dora", "use_rslora"),
        }
    ),
    "IA3": frozenset(
        {"exclude_modules", "feedforward_modules", "modules_to_save", "target_modules"}
    ),
    **dict.fromkeys(PROMPTS, _VIRTUAL),
}
"""Options that are honoured; any other must be off (null, false, empty)."""

_BASE_STAYS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base's weights alone; PiSSA, OLoRA, CorDA and kin do not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Virtual:
    """What a config says of vectors before the input; None where it leaves that to the base.

    Attributes:
        tokens: vectors, or keys and values.
        width: PEFT's token_dim: of a vector, or of all key heads of a layer.
        layers: attention layers.
        heads: key and value heads.
        parts: num_transformer_submodules: 2 reserves as many vectors for a decoder.
    """

    tokens: int
    width: int | None
    layers: int | None
    heads: int | None
    parts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PeftConfig:
    """The options of a finished adapter that change what it does.

    Attributes:
        kind: "LORA" (DoRA included), "IA3", or one of `PROMPTS`.
        rank: LoRA's r where `rank_pattern` says nothing else.
        alpha: its lora_alpha where `alpha_pattern` says nothing else.
        rank_pattern: pattern of module names -> rank.
        alpha_pattern: pattern of module names -> alpha.
        rslora: whether the factor is alpha / sqrt(r) instead of alpha / r.
        dora: whether there are magnitudes.
        bias: "none", "all" or "lora_only".
        lora_bias: whether B has a bias.
        targets: a regular expression, or ends of module names; None where the file says nothing.
        excluded: likewise, modules left out.
        layers: indices of the layers that are adapted; None means all.
        layers_pattern: names of the lists that the indices count in.
        feedforward: IA3: modules whose inputs are scaled.
        saved: ends of the names of modules that are stored whole.
        task_type: PEFT's name of the task; None where it says nothing.
        virtual: of prompts and prefixes.
    """

    kind: Kind
    rank: int = 8
    alpha: float = 8.0
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool = False
    dora: bool = False
    bias: str = "none"
    lora_bias: bool = False
    targets: str | tuple[str, ...] | None
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    feedforward: str | tuple[str, ...]
    saved: tuple[str, ...]
    task_type: str | None
    virtual: Virtual | None = None

    def rank_of(self, module: str) -> int:
        """Return the rank that the config gives a module."""
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.rank)

    def factor_of(self, module: str) -> float:
        """Return what multiplies B A in a module."""
        alpha = self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def adapts(self, module: str) -> bool:
        """Tell whether the config targets a module of this name, by PEFT's rules."""
        if _matches(self.excluded, module) or self.saves(module):
            return False
        if self.targets is None or isinstance(self.targets, str):
            return self.targets is not None and _matches(self.targets, module)
        if module in self.targets:
            return True
        return _matches(self.targets, module) and self._in_layers(module)

    def feeds_forward(self, module: str) -> bool:
        """Tell whether IA3 scales the inputs of this module."""
        if isinstance(self.feedforward, str):
            return _matches(self.feedforward, module)
        # PEFT looks at the end of the name without asking for a dot before it
        return module.endswith(self.feedforward) if self.feedforward else False

    def saves(self, name: str) -> bool:
        """Tell whether a module, or what it lies in, is stored whole."""
        return any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in self.saved)

    def _in_layers(self, module: str) -> bool:
        if self.layers is None:
            return True
        patterns = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in self.layers_pattern]
        found = (re.match(p, module) for p in patterns or [r".*?\.[^.]*\.(\d+)\."])
        index = next((int(m.group(1)) for m in found if m), None)
        return index in self.layers


def parse_config(data: Mapping[str, Any], where: str) -> PeftConfig:
    """Return the options of an adapter_config.json.

    Raises:
        UnsupportedError: another method than LoRA, DoRA, IA3, prompt, P- or prefix tuning, or an
            option that cannot be honoured; names it.
        DeltaFileError: an option has a value of the wrong kind.
    """
    method = data.get("peft_type")
    kind = next((known for known in _READ if known == method), None)
    if kind is None:
        raise UnsupportedError(
            f"{where}: peft_type is {method!r}; LORA (DoRA, rsLoRA), IA3, PROMPT_TUNING, P_TUNING "
            "and PREFIX_TUNING can be imported"
        )
    _refuse_options(data, kind, where)
    take = _Taker(data, where)
    config = PeftConfig(
        kind=kind,
        rank=take.number("r", 8, whole=True),
        alpha=float(take.number("lora_alpha", 8)),
        rank_pattern=take.numbers("rank_pattern", whole=True),
        alpha_pattern={k: float(v) for k, v in take.numbers("alpha_pattern").items()},
        rslora=take.flag("use_rslora"),
        dora=take.flag("use_dora"),
        bias=str(data.get("bias") or "none"),
        lora_bias=take.flag("lora_bias"),
        targets=take.pattern("target_modules"),
        excluded=take.pattern("exclude_modules") or (),
        layers=take.layers("layers_to_transform"),
        layers_pattern=take.names("layers_pattern"),
        feedforward=take.pattern("feedforward_modules") or (),
        saved=take.names("modules_to_save"),
        task_type=None if data.get("task_type") is None else str(data["task_type"]),
        virtual=_virtual(take, data) if kind in PROMPTS else None,
    )
    if config.bias not in ("none", "all", "lora_only"):
        raise UnsupportedError(f"{where}: bias is {config.bias!r}, known: none, all, lora_only")
    _check_patterns(config, where)
    return config


def _virtual(take: _Taker, data: Mapping[str, Any]) -> Virtual:
    several = 2 if data.get("task_type") == "SEQ_2_SEQ_LM" else 1
    return Virtual(
        tokens=take.number("num_virtual_tokens", None, whole=True),
        width=take.known("token_dim"),
        layers=take.known("num_layers"),
        heads=take.known("num_attention_heads"),
        parts=take.number("num_transformer_submodules", several, whole=True),
    )


def _refuse_options(data: Mapping[str, Any], kind: Kind, where: str) -> None:
    for option, value in data.items():
        off = value in (None, False, "", 0) or value == {} or value == []
        if option in _WITHOUT_EFFECT or option in _READ[kind] or off:
            continue
        raise UnsupportedError(
            f"{where}: option {option!r} is {value!r}, which cannot be honoured: the adapter would "
            "do something else here than in PEFT; train it without, or merge it in PEFT and take "
            "the difference with graftwork.deltas.between"
        )
    start = data.get("init_lora_weights")
    if start not in _BASE_STAYS:
        raise UnsupportedError(
            f"{where}: init_lora_weights is {start!r}, which changes the base's own weights; save "
            "the adapter with path_initial_model_for_weight_conversion, which undoes that"
        )


def _check_patterns(config: PeftConfig, where: str) -> None:
    patterns = [
        *config.rank_pattern,
        *config.alpha_pattern,
        *config.layers_pattern,
        *config.saved,
        *(p for p in (config.targets, config.excluded, config.feedforward) if isinstance(p, str)),
    ]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as cause:
            raise DeltaFileError(f"{where}: pattern {pattern!r} cannot be read: {cause}") from None


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    """Return the first pattern that fits the module's whole name or an end of it after a dot."""
    fits = (p for p in patterns if re.match(rf"(.*\.)?({p})$", module))
    return next(fits, module)


def _matches(pattern: str | Sequence[str] | None, module: str) -> bool:
    if isinstance(pattern, str):
        return re.fullmatch(pattern, module) is not None
    return any(module == end or module.endswith(f".{end}") for end in pattern or ())


@dataclass(frozen=True, slots=True)
class _Taker:
    """Takes options of a stated kind."""

    data: Mapping[str, Any]
    where: str

    def number(self, option: str, default: Any, *, whole: bool = False) -> Any:
        value = self.data.get(option)
        return self._number(option, default if value is None else value, whole)

    def known(self, option: str) -> int | None:
        return None if self.data.get(option) is None else int(self.number(option, 0, whole=True))

    def numbers(self, option: str, *, whole: bool = False) -> dict[str, Any]:
        value = self.data.get(option) or {}
        if not isinstance(value, Mapping):
            self._wrong(option, value, "a mapping of patterns to numbers")
        return {k: self._number(f"{option}[{k!r}]", v, whole) for k, v in value.items()}

    def flag(self, option: str) -> bool:
        value = self.data.get(option)
        if value not in (None, True, False):
            self._wrong(option, value, "true or false")
        return bool(value)

    def pattern(self, option: str) -> str | tuple[str, ...] | None:
        value = self.data.get(option)
        return value if isinstance(value, str) or value is None else self.names(option)

    def names(self, option: str) -> tuple[str, ...]:
        value = self.data.get(option)
        if isinstance(value, str):
            return (value,)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(name, str) for name in value)
        ):
            self._wrong(option, value, "a list of names")
        return tuple(value or ())

    def layers(self, option: str) -> tuple[int, ...] | None:
        value = self.data.get(option)
        value = [value] if type(value) is int else value
        if value is None or value == []:
            return None
        if not (isinstance(value, list) and all(type(index) is int for index in value)):
            self._wrong(option, value, "a list of indices")
        return tuple(value)

    def _number(self, option: str, value: Any, whole: bool) -> Any:
        kinds = (int,) if whole else (int, float)
        if type(value) not in kinds or not math.isfinite(value) or (whole and value < 1):
            self._wrong(option, value, "a whole number of 1 or more" if whole else "a number")
        return value

    def _wrong(self, option: str, value: Any, wanted: str) -> None:
        raise DeltaFileError(f"{self.where}: {option} is {value!r}, it must be {wanted}")
