"""The tensors of a PEFT adapter, sorted by the module they belong to.

Keys are read from their end, so that no module's name can be taken for a part of PEFT's own
spelling: a module or adapter may be called `lora`, `lora_A`, `foo` or `foobar`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from graftwork._errors import DeltaFileError, closest
from graftwork.formats._peft_config import PROMPTS, Kind

PREFIX = "base_model.model."
PROMPT_PREFIX = "base_model."
"""Start of a key where PEFT wraps the model itself, as prompts and prefixes do."""
VECTORS = "prompt_embeddings"
"""Key of the vectors of a prompt or prefix."""

ENDINGS: Mapping[Kind, Mapping[str, str]] = {
    "LORA": {
        "lora_A.weight": "a",
        "lora_B.weight": "b",
        "lora_B.bias": "b_bias",
        "lora_embedding_A": "a",
        "lora_embedding_B": "b",
        "lora_magnitude_vector": "magnitude",
        # before PEFT 0.11
        "lora_magnitude_vector.weight": "magnitude",
    },
    "IA3": {"ia3_l": "scale"},
    **{kind: {} for kind in PROMPTS},
}
"""End of a key -> part of an adapted module."""

_PEFT_ONLY = ("lora_", "ia3_", "trainable_tokens_", "token_adapter", "modules_to_save", "hada_")


@dataclass(slots=True)
class Adapter:
    """Tensors by what they are.

    Attributes:
        parts: name of an adapted module, as PEFT's model calls it -> part -> tensor.
        keys: (module, part) -> key in the file, for messages.
        whole: name of a parameter or buffer that is stored whole -> tensor.
        vectors: of a prompt or prefix; None without one.
    """

    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    vectors: Tensor | None = None


def sort_keys(tensors: Mapping[str, Tensor], kind: Kind) -> Adapter:
    """Return the tensors of an adapter file, sorted.

    Raises:
        DeltaFileError: a key does not begin as PEFT's do, has an adapter's name inside, belongs to
            another method, or means the same as another key.
    """
    found, prefix = Adapter(), PROMPT_PREFIX if kind in PROMPTS else PREFIX
    for key, tensor in tensors.items():
        if key == VECTORS and kind in PROMPTS:
            found.vectors = tensor
            continue
        if not key.startswith(prefix):
            raise DeltaFileError(
                f"tensor {key!r} does not begin with {prefix!r}; did PEFT save this adapter?"
            )
        name = key.removeprefix(prefix)
        module, part = _split(name, kind)
        if part is None:
            _add_whole(found, key, name, tensor)
        elif part in found.parts.setdefault(module, {}):
            other = found.keys[module, part]
            raise DeltaFileError(f"tensors {other!r} and {key!r} mean the same")
        else:
            found.parts[module][part] = tensor
            found.keys[module, part] = key
    return found


def _split(name: str, kind: Kind) -> tuple[str, str | None]:
    for ending, part in ENDINGS[kind].items():
        if name == ending or name.endswith(f".{ending}"):
            return _plain(name[: -len(ending)].removesuffix(".")), part
    return name, None


def _add_whole(found: Adapter, key: str, name: str, tensor: Tensor) -> None:
    strange = next((word for word in name.split(".") if word.startswith(_PEFT_ONLY)), None)
    if strange is not None:
        endings = [e for by_kind in ENDINGS.values() for e in by_kind]
        raise DeltaFileError(
            f"tensor {key!r} cannot be honoured: no key of an adapter of this method ends so"
            f"{closest('.'.join(name.split('.')[-2:]), endings)}; was it saved by save_pretrained, "
            "which leaves the adapter's own name out?"
        )
    plain = _plain(name)
    if plain in found.whole:
        raise DeltaFileError(f"tensor {key!r} is stored twice, once with 'base_layer' in its name")
    found.whole[plain] = tensor


def _plain(name: str) -> str:
    """Return a name without the wrappers that PEFT puts around an adapted module."""
    return ".".join(word for word in name.split(".") if word != "base_layer")
