"""What a model folder says: weight files, and a sentence-transformers pipeline if any."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork._errors import BaseError, UnsupportedError
from graftwork.bases._own import MARK, Own, own_folder

_POOLINGS = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


@dataclass(frozen=True, slots=True)
class Folder:
    """A model folder.

    Attributes:
        root: where config.json, tokenizer and weights lie.
        weights: the safetensors files.
        pooling: of a sentence-transformers folder.
        max_length: of a sentence-transformers folder.
        normalise: whether its pipeline ends with a normalise layer; None for other folders.
        own: which model of `graftwork.models` it holds; None for others.
    """

    root: Path
    weights: tuple[Path, ...]
    pooling: str | None = None
    max_length: int | None = None
    normalise: bool | None = None
    own: Own | None = None


def read_folder(path: Path) -> Folder:
    """Read a folder of transformers, of sentence-transformers, or of our own.

    Raises:
        BaseError: no config.json, no safetensors weights, or a file that cannot be read.
        UnsupportedError: a pipeline module or pooling that graftwork does not have.
    """
    modules = path / "modules.json"
    if not modules.is_file():
        weights, said = _weights(path), read_json(path / "config.json")
        if not isinstance(said, dict) or MARK not in said:
            return Folder(path, weights)
        own, pooling, length = own_folder(said, path / "config.json")
        return Folder(path, weights, pooling, length, own=own)
    root, pooling, normalise = path, None, False
    for module in read_json(modules):
        kind, place = str(module.get("type", "")), path / str(module.get("path", ""))
        match kind.rpartition(".")[2]:
            case "Transformer":
                root = place
            case "Pooling":
                pooling = _pooling(place / "config.json")
            case "Normalize":
                normalise = True
            case _:
                raise UnsupportedError(
                    f"{path}: the sentence-transformers module {kind!r} is not supported; "
                    "supported: Transformer, Pooling, Normalize"
                )
    return Folder(root, _weights(root), pooling, _max_length(root), normalise)


def read_json(path: Path) -> Any:
    """Return the JSON of `path`.

    Raises:
        BaseError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise BaseError(f"{path} cannot be read: {cause}") from cause


def _weights(root: Path) -> tuple[Path, ...]:
    if not (root / "config.json").is_file():
        raise BaseError(f"{root} is no model folder: it has no config.json")
    single, index = root / "model.safetensors", root / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [s for s in shards if not (root / s).is_file()]
        if missing or not shards:
            raise BaseError(f"{index} names the shard {missing[:1] or 'none'}, which is not there")
        return tuple(root / shard for shard in shards)
    pickles = sorted(p.name for pattern in _PICKLES for p in root.glob(pattern))
    if pickles:
        raise BaseError(
            f"{root} has only {pickles[0]!r}, and graftwork reads no pickled or foreign weights; "
            "convert once in a place you trust: AutoModel.from_pretrained(folder)"
            ".save_pretrained(new_folder), which writes safetensors"
        )
    raise BaseError(f"{root} has no model.safetensors")


def _pooling(path: Path) -> str:
    config = read_json(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [name for key, name in _OLD_POOLINGS.items() if config.get(key)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UnsupportedError(
            f"{path}: pooling {' + '.join(map(str, modes)) or 'none'!r} is not supported; "
            f"supported: one of {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[modes[0]]


def _max_length(root: Path) -> int | None:
    path = root / "sentence_bert_config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if config.get("do_lower_case"):
        raise UnsupportedError(
            f"{path}: do_lower_case lowers text before the tokenizer, which graftwork does not do; "
            "use a tokenizer that lowers by itself"
        )
    length = config.get("max_seq_length")
    return None if length is None else int(length)
