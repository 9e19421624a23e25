"""Setting a task's streams up for a run: batch size, this process's share, where they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from graftwork._errors import ConfigError, UnsupportedError
from graftwork.tasks import Stream, TableStream, Task, shard
from graftwork.training._distributed import World
from graftwork.training._trainee import part


def share_out(task: Task, world: World) -> None:
    """Give this process its rows of every batch of every stream.

    Raises:
        UnsupportedError: a stream of an unknown kind, with several processes.
    """
    shard(task.streams, world.rank, world.size)


def rebatch(stream: Stream, batch_size: int) -> None:
    """Let `stream` go on with batches of another size, behind the rows that were drawn.

    Raises:
        UnsupportedError: the stream makes its batches itself.
        ConfigError: some process would get no rows.
    """
    if getattr(stream, "batch_size", None) == batch_size:
        return
    if not isinstance(stream, TableStream):
        raise UnsupportedError(
            f"stream {stream.name!r} ({type(stream).__name__}) makes its batches itself; leave "
            "batch_size empty"
        )
    if batch_size < stream.world:
        raise ConfigError(f"batch_size {batch_size} is less than the {stream.world} processes")
    drawn = stream.index * stream.batch_size
    stream.batch_size = batch_size
    stream.seek(math.ceil(drawn / batch_size))


def stream_tensors(task: Task) -> dict[str, Tensor]:
    """Return where every stream stands."""
    return {
        f"stream/{name}/{key}": tensor
        for name, stream in task.streams.items()
        for key, tensor in stream.state().items()
    }


def load_streams(task: Task, tensors: Mapping[str, Tensor]) -> None:
    """Set every stream to where it stood.

    Raises:
        InputError: the data changed since.
    """
    for name, stream in task.streams.items():
        stream.load_state(part(tensors, f"stream/{name}/"))
