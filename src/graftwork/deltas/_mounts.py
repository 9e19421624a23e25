"""Ports that the base itself runs: put in at a place of a copy of its module tree.

A port called "<kind>:<canonical name of a tensor>", with a kind of `MOUNTS`, is mounted: `view` and
training run it, and a call never sees it. The tensor says where: a bottleneck follows the layer
that holds it; a prompt and a prefix name the table of the input embeddings. It is part of the
delta's fingerprint.

Shape legend: B rows, T tokens, L vectors of a prompt or prefix, H width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from graftwork._errors import UnsupportedError
from graftwork.deltas._names import NameMap


@runtime_checkable
class Named(Protocol):
    """The part of a base that mounting needs."""

    @property
    def names(self) -> NameMap:
        """Canonical names of its parameters."""


@runtime_checkable
class Rooted(Named, Protocol):
    """A base with its module."""

    @property
    def model(self) -> nn.Module:
        """The module."""


_POSITIONS = ("past_key_values", "position_ids", "cache_position")
"""Arguments that count positions, which a prompt or prefix moves."""


def place_of(name: str, kind: str) -> str:
    """Return the canonical tensor that a mounted port is at; "" for a port that the call runs.

    Example:
        >>> place_of("bottleneck:encoder.layer.0.output.dense.weight", "bottleneck")
        'encoder.layer.0.output.dense.weight'
        >>> place_of("head", "head"), place_of("bottleneck", "bottleneck")
        ('', '')
    """
    start = f"{kind}:"
    return name[len(start) :] if kind in MOUNTS and name.startswith(start) else ""


def mount(base: Named, root: nn.Module, name: str, kind: str, port: nn.Module) -> None:
    """Make `root`, a copy of the base's module, run `port` at its place.

    Args:
        base: gives the names.
        root: changed in place.
        name: the port's, "<kind>:<canonical tensor>".
        kind: a key of `MOUNTS`.
        port: moved to the device of `root` before.

    Raises:
        UnknownNameError: the base has no such tensor.
        UnsupportedError: the module cannot run such a port there.
    """
    MOUNTS[kind](root, base.names[place_of(name, kind)].parameter, port)


def _bottleneck(root: nn.Module, parameter: str, port: nn.Module) -> None:
    path = parameter.rpartition(".")[0]

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return port(output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (port(output[0]), *output[1:])
        raise UnsupportedError(
            f"a bottleneck follows a layer that gives a tensor; {path!r} gives a "
            f"{type(output).__name__}"
        )

    root.get_submodule(path).register_forward_hook(after)


def _prompt(root: nn.Module, _parameter: str, port: nn.Module) -> None:
    """Put L vectors before the embedded input, and take their L outputs away again.

    Of an encoder and a decoder, the encoder reads them (Lester et al., 2021, section 2); the
    outputs are the decoder's and stay.
    """
    embeddings = _input_embeddings(root, "a prompt", "inputs_embeds")
    pair = _takes(root, "decoder_input_ids")
    # the decoder's positions do not move; `generate` runs the encoder alone, without this module
    refused = ("encoder_outputs", *_POSITIONS) if pair else (*_POSITIONS, "labels")
    added: list[int] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
        given = _given(module, args, kwargs)
        _refuse("a prompt", given, refused)
        ids, embedded = given.pop("input_ids", None), given.pop("inputs_embeds", None)
        embedded = embeddings(ids) if embedded is None else embedded
        longer = port(embedded)
        added[:] = [longer.shape[1] - embedded.shape[1]]
        _lengthen(given, added[0])
        return (), {**given, "inputs_embeds": longer}

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if pair:
            return _cut(output, added[0], ("encoder_last_hidden_state",))
        return _shortened(output, added[0])

    root.register_forward_pre_hook(before, with_kwargs=True)
    root.register_forward_hook(after)


def _prefix(root: nn.Module, _parameter: str, port: nn.Module) -> None:
    """Give every attention layer L keys and values that come before the input's."""
    _input_embeddings(root, "a prefix", "past_key_values")
    if not is_causal(root):
        raise UnsupportedError(
            f"a prefix goes in as past keys and values, which {type(root).__name__} does not read: "
            "it is no causal decoder; take a prompt or a low-rank term"
        )

    def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
        from transformers.cache_utils import DynamicCache

        given = _given(module, args, kwargs)
        _refuse("a prefix", given, _POSITIONS)
        ids = given.get("input_ids")
        rows = given["inputs_embeds"] if ids is None else ids
        dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
        cache = DynamicCache()
        vectors = port(rows).to(dtype)
        for layer, (keys, values) in enumerate(vectors):
            cache.update(keys, values, layer)
        _lengthen(given, vectors.shape[-2], "attention_mask")
        return (), {**given, "past_key_values": cache}

    root.register_forward_pre_hook(before, with_kwargs=True)


MOUNTS: Mapping[str, Callable[[nn.Module, str, nn.Module], None]] = {
    "bottleneck": _bottleneck,
    "prompt": _prompt,
    "prefix": _prefix,
}
"""Kind -> what puts a port of it in: (copy of the base's module, parameter at the place, port)."""


def is_causal(model: nn.Module) -> bool:
    """Return whether a module is a causal decoder that reads past keys and values."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return False
    attention = (getattr(m, "is_causal", None) for m in model.modules())
    return any(flag is True for flag in attention)


def input_table(base: Rooted) -> tuple[str, Tensor]:
    """Return the canonical name and the values of the base's input embeddings.

    Raises:
        UnsupportedError: the base has no such table.
    """
    model: Any = base.model
    table = None
    if hasattr(model, "get_input_embeddings"):
        # transformers has the method on every model, and raises where there is no such table
        with suppress(NotImplementedError):
            table = getattr(model.get_input_embeddings(), "weight", None)
    if table is None or table.dim() != 2:
        raise UnsupportedError(
            f"{type(model).__name__} has no table of input embeddings (get_input_embeddings), so "
            "there is nothing that a prompt or prefix could stand before"
        )
    for name, parameter in model.named_parameters():
        if parameter is table:
            return base.names[name].name, table.detach()
    raise UnsupportedError("the table of input embeddings is no parameter of the base")


def prefix_sizes(model: nn.Module) -> dict[str, int]:
    """Return the layers, key and value heads, and width of a head that a prefix of `model` has.

    Raises:
        UnsupportedError: its config does not state them.
    """
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(heads, int) or not isinstance(layers, int):
        raise UnsupportedError(
            f"the config of {type(model).__name__} states no num_attention_heads and "
            "num_hidden_layers, which a prefix needs"
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return {"layers": layers, "heads": int(kept), "width": int(width)}


def _takes(root: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(root.forward).parameters


def _input_embeddings(root: Any, what: str, argument: str) -> nn.Module:
    if not hasattr(root, "get_input_embeddings") or not _takes(root, argument):
        names = inspect.signature(root.forward).parameters
        raise UnsupportedError(
            f"{what} needs a transformers model whose forward takes {argument!r}; "
            f"{type(root).__name__} takes {', '.join(names) or 'nothing'}"
        )
    embeddings: nn.Module = root.get_input_embeddings()
    return embeddings


def _given(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return all arguments of a call by name, without those that are None."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    named = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return {name: value for name, value in named.items() if value is not None}


def _refuse(what: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name in given:
            raise UnsupportedError(
                f"{what} changes the positions of a row, so {name!r} cannot be given (as generate "
                "does): call the module on whole rows"
            )


def _lengthen(given: dict[str, Any], count: int, *names: str) -> None:
    """Put `count` positions before those of the masks: attended, of the first type."""
    for name in names or ("attention_mask", "token_type_ids"):
        value = given.get(name)
        if value is None:
            continue
        if value.dim() != 2:
            raise UnsupportedError(f"{name!r} must be (rows, tokens) here, not {value.dim()}-D")
        fill = 1 if name == "attention_mask" else 0
        given[name] = torch.cat([value.new_full((value.shape[0], count), fill), value], 1)


def _shortened(output: Any, count: int) -> Any:
    """Return the output without its first `count` positions."""
    if isinstance(output, Tensor):
        return output[:, count:] if output.dim() > 2 else output
    if isinstance(output, tuple) and not hasattr(output, "keys"):
        return (_shortened(output[0], count), *output[1:])
    # scores of where a span begins and ends are (rows, tokens); scores of whole rows have two axes
    # as well, and are left alone
    tokens = [k for k in ("last_hidden_state", "logits") if output.get(k) is not None]
    return _cut(output, count, (*(k for k in tokens if output[k].dim() > 2), *_SPANS))


_SPANS = ("start_logits", "end_logits")


def _cut(output: Any, count: int, keys: tuple[str, ...]) -> Any:
    """Take the first `count` positions of the named fields away, where there are such fields."""
    for key in keys if hasattr(output, "keys") else ():
        if output.get(key) is not None:
            output[key] = output[key][:, count:]
    return output
