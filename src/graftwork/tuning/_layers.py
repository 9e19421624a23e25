"""Where a parameter stands in a network, read off its name."""

from __future__ import annotations

from collections.abc import Sequence


def layer_of(name: str) -> str:
    """Return the layer that a canonical name belongs to: the part up to its first number.

    A name without a number belongs to the module that holds it.

    Example:
        >>> layer_of("encoder.layer.3.attention.self.query.weight")
        'encoder.layer.3'
        >>> layer_of("embeddings.LayerNorm.bias")
        'embeddings.LayerNorm'
    """
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return ".".join(parts[: i + 1])
    return ".".join(parts[:-1])


def last_layer(names: Sequence[str]) -> list[str]:
    """Return the names in the last numbered layer, or in the last module where none is numbered.

    "Last" is by the order of `names`, which is the module's own: of an encoder and a decoder it is
    the decoder's last layer.

    Example:
        >>> last_layer(["layer.0.w", "layer.1.w", "layer.1.b", "pooler.w"])
        ['layer.1.w', 'layer.1.b']
    """
    layers = [layer_of(name) for name in names]
    numbered = [layer for layer in layers if layer.rpartition(".")[2].isdecimal()]
    last = (numbered or layers)[-1]
    return [name for name, layer in zip(names, layers, strict=True) if layer == last]
