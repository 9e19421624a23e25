"""A small cache of what plans share, bounded by bytes; thread-safe."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """The values used last, of at most so many bytes together; the last one always stays.

    Args:
        budget: bytes.
        size: bytes of a value.
    """

    def __init__(self, budget: int, size: Callable[[V], int]) -> None:
        self.budget, self._size = budget, size
        self._held: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value of `key`, made where it is not held (by several threads at worst)."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        value = make()
        size = self._size(value)
        with self._lock:
            if key in self._held:
                return self._held[key][0]
            self._held[key] = (value, size)
            self._bytes += size
            while self._bytes > self.budget and len(self._held) > 1:
                _, (_, freed) = self._held.popitem(last=False)
                self._bytes -= freed
        return value

    def drop(self, unwanted: Callable[[Hashable], bool]) -> None:
        """Forget the values whose keys are unwanted."""
        with self._lock:
            for key in [key for key in self._held if unwanted(key)]:
                self._bytes -= self._held.pop(key)[1]

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return self._bytes
