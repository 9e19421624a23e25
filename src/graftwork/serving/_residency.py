"""Which prepared deltas are held: a cache bounded by bytes, with leases, pins and read-ahead.

The cache knows nothing of deltas: it is given a function that prepares the value of a key (a
content hash, law 9) and one that says how many bytes a value takes. One lock guards its tables and
is never held while a value is prepared, measured or dropped.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

from graftwork._errors import CapacityError, ConfigError, InputError

V = TypeVar("V")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidencyStatistics:
    """What a `Residency` did so far, and holds now.

    Attributes:
        hits: requests that found the value.
        waits: requests that waited for a preparation another thread had begun.
        misses: requests that began a preparation.
        read_ahead: preparations that read-ahead began.
        failures: preparations that raised, or whose value found no room.
        evictions: values dropped to make room.
        entries: values held.
        bytes: bytes held.
        pinned_bytes: bytes that cannot be dropped now: leased or pinned.
        peak_bytes: most bytes ever held.
        budget_bytes: most bytes that may be held.
    """

    hits: int
    waits: int
    misses: int
    read_ahead: int
    failures: int
    evictions: int
    entries: int
    bytes: int
    pinned_bytes: int
    peak_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """What reading ahead came to.

    Attributes:
        ready: keys whose values are held.
        left_out: keys for which there was no room but what is in use, or was read ahead itself.
        failed: key -> error of its preparation.
    """

    ready: tuple[str, ...]
    left_out: tuple[str, ...]
    failed: dict[str, Exception]


class _NoRoomError(CapacityError):
    """What is in use leaves no room now; later there may be."""


@dataclass(slots=True)
class _Held(Generic[V]):
    """A value, its bytes, the leases and pins on it, and whether nobody asked for it yet."""

    value: V
    bytes: int
    leases: int
    pins: int = 0
    ahead: bool = False


@dataclass(slots=True)
class _Job(Generic[V]):
    """A preparation that one thread makes and `waiting` others wait for."""

    thread: int
    waiting: int = 0
    done: Future[_Held[V]] = field(default_factory=Future)


class Residency(Generic[V]):
    """A thread-safe cache of prepared values that never holds more bytes than its budget.

    `with residency.get(key) as value` leases a value: it stays while the block runs. Beyond the
    budget the values used longest ago are dropped, except leased and pinned ones. A value is
    prepared once, however many threads ask for it at that time; the other ones wait, and an error
    of `prepare` reaches all of them and is not remembered. What a value takes is known only when it
    is made, so while n threads prepare, up to n values exist beside the budget.

    Where leases and pins leave no room, `get` raises and does not wait: a batch that holds a lease
    and asks for the next could wait for itself for ever.

    Arguments:
        budget_bytes: most bytes held.
        prepare: makes the value of a key; called without the lock, in several threads at once for
            different keys. It must not ask this cache for values: two preparations that wait for
            each other would wait for ever.
        size: bytes that a value takes.

    Raises:
        ConfigError: the budget is not positive.

    Example:
        >>> residency = Residency(8, prepare=lambda key: key * 4, size=len)
        >>> with residency.get("a") as one, residency.get("b") as other:
        ...     one + other
        'aaaabbbb'
        >>> with residency.get("c"):
        ...     residency.keys()
        ('b', 'c')
        >>> residency.statistics().evictions
        1
    """

    def __init__(
        self, budget_bytes: int, prepare: Callable[[str], V], size: Callable[[V], int]
    ) -> None:
        if budget_bytes < 1:
            raise ConfigError(f"budget_bytes: 1 or more, not {budget_bytes}")
        self.budget_bytes = budget_bytes
        self._prepare, self._size = prepare, size
        # a plan that is collected while this thread holds it gives back its pins
        self._lock = threading.RLock()
        self._held: OrderedDict[str, _Held[V]] = OrderedDict()
        self._jobs: dict[str, _Job[V]] = {}
        self._bytes = self._peak = 0
        self._counts = dict.fromkeys(
            ("hits", "waits", "misses", "read_ahead", "failures", "evictions"), 0
        )
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False

    @contextmanager
    def get(self, key: str) -> Iterator[V]:
        """Give the value of `key` while the block runs; it is not dropped before the block ends.

        Raises:
            CapacityError: the value is larger than the budget, or leases and pins leave no room.
            InputError: `prepare` asked for the very key that it prepares.
            Exception: what `prepare` or `size` raised.
        """
        held = self._lease(key)
        try:
            yield held.value
        finally:
            with self._lock:
                held.leases -= 1
            del held

    def pin(self, key: str) -> V:
        """Return the value of `key`, which stays until as many `unpin` have followed.

        Raises:
            CapacityError: as `get`.
        """
        held = self._lease(key)
        with self._lock:
            held.leases -= 1
            held.pins += 1
        return held.value

    def unpin(self, key: str) -> None:
        """Undo one `pin`; the value stays until its room is wanted.

        Raises:
            InputError: `key` is not pinned.
        """
        with self._lock:
            held = self._held.get(key)
            if held is None or not held.pins:
                raise InputError(f"{key!r} is not pinned; each unpin undoes one pin")
            held.pins -= 1

    def read_ahead(self, keys: Iterable[str]) -> Future[ReadAhead]:
        """Prepare values in a background thread, in this order, and return what will come of it.

        Reading ahead never drops what is in use, nor what it read before and nobody asked for yet:
        once there is no room, the keys that are left are left out.

        Raises:
            CapacityError: the cache is closed.
        """
        wanted = tuple(dict.fromkeys(keys))
        with self._lock:
            if self._closed:
                raise CapacityError("the cache is closed; make a new one")
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="residency")
            return self._worker.submit(self._read_ahead, wanted)

    def remove(self, key: str) -> int:
        """Drop the value of `key` and return the bytes given back; 0 where it is not held.

        Raises:
            CapacityError: it is leased, pinned or being prepared.
        """
        with self._lock:
            held = self._held.get(key)
            if key in self._jobs:
                raise CapacityError(f"{key!r} is being prepared; remove it when it is done")
            if held is None:
                return 0
            if _in_use(held):
                raise CapacityError(
                    f"{key!r} is in use by {held.leases} leases and {held.pins} pins; end them "
                    "before it is removed"
                )
            del self._held[key]
            self._bytes -= held.bytes
            return held.bytes

    def close(self) -> None:
        """Stop reading ahead and drop all that is not in use; leases may still end.

        Keys whose turn has not come are cancelled: their futures say so.
        """
        with self._lock:
            self._closed, worker, self._worker = True, self._worker, None
        if worker is not None:
            worker.shutdown(wait=True, cancel_futures=True)
        for key in self.keys():
            with self._lock:
                idle = key in self._held and not _in_use(self._held[key])
                dropped = self._held.pop(key) if idle else None
                self._bytes -= dropped.bytes if dropped else 0
            del dropped

    def __enter__(self) -> Residency[V]:
        """Return the cache; it is closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `close`."""
        self.close()

    def __contains__(self, key: object) -> bool:
        """Tell whether the value of `key` is held."""
        with self._lock:
            return key in self._held

    def keys(self) -> tuple[str, ...]:
        """Return the keys of the values held, those used longest ago first."""
        with self._lock:
            return tuple(self._held)

    def statistics(self) -> ResidencyStatistics:
        """Return what was done so far and is held now, of one moment."""
        with self._lock:
            return ResidencyStatistics(
                **self._counts,
                entries=len(self._held),
                bytes=self._bytes,
                pinned_bytes=self._pinned_bytes(),
                peak_bytes=self._peak,
                budget_bytes=self.budget_bytes,
            )

    def _lease(self, key: str) -> _Held[V]:
        """Return the entry of `key` with one lease more."""
        with self._lock:
            if self._closed:
                raise CapacityError("the cache is closed; make a new one")
            held = self._held.get(key)
            if held is not None:
                self._counts["hits"] += 1
                held.leases += 1
                held.ahead = False
                self._held.move_to_end(key)
                return held
            others = self._jobs.get(key)
            if others is None:
                self._counts["misses"] += 1
                mine = self._begin(key)
            elif others.thread == threading.get_ident():
                raise InputError(f"the preparation of {key!r} asks for {key!r} itself")
            else:
                self._counts["waits"] += 1
                others.waiting += 1
                mine = None
        if mine is not None:
            return self._run(key, mine, leases=1)
        assert others is not None
        try:
            # the entry comes with a lease for everyone who waits, so it cannot be dropped before
            return others.done.result()
        finally:
            del others  # as in `_run`

    def _begin(self, key: str) -> _Job[V]:
        job: _Job[V] = _Job(threading.get_ident())
        self._jobs[key] = job
        return job

    def _run(self, key: str, job: _Job[V], leases: int) -> _Held[V]:
        """Prepare the value of `key`, hold it, and tell those who wait."""
        try:
            value = self._prepare(key)
            held = _Held(value, self._size(value), leases, ahead=not leases)
            del value
            found = self._admit(key, job, held)
            if isinstance(found, Exception):
                # an error holds its frames, and they would hold the value that found no room
                del held
                raise found
            del found  # without the lock: dropping may take long, or run code of the values' own
        except BaseException as cause:
            with self._lock:
                self._counts["failures"] += 1
                if self._jobs.get(key) is job:
                    del self._jobs[key]
            told = cause
            if not isinstance(cause, Exception):
                told = CapacityError(f"the preparation of {key!r} was interrupted; ask again")
            job.done.set_exception(told)
            del told, job  # the error holds this frame, which would hold the error
            raise
        job.done.set_result(held)
        return held

    def _admit(self, key: str, job: _Job[V], held: _Held[V]) -> list[_Held[V]] | Exception:
        """Hold an entry; return what was dropped for it, or why it cannot be held."""
        if held.bytes < 0:
            return InputError(f"size() of {key!r} is {held.bytes}, it must be 0 or more")
        if held.bytes > self.budget_bytes:
            return CapacityError(
                f"{key!r} takes {held.bytes:,} bytes, more than the whole budget of "
                f"{self.budget_bytes:,}; give the cache more, or compress the delta"
            )
        with self._lock:
            held.leases += job.waiting
            held.ahead = held.leases == 0
            victims, free = self._victims(held)
            # either way nobody can join the job any more: a request that comes now finds the entry,
            # or asks for itself, and may have room where reading ahead had none
            del self._jobs[key]
            if free < held.bytes:
                return _NoRoomError(
                    f"{key!r} takes {held.bytes:,} bytes, and of the budget of "
                    f"{self.budget_bytes:,} only {free:,} can be had: {self._pinned_bytes():,} are "
                    "leased or pinned; end leases or unpin, run fewer tasks at once, or give the "
                    "cache more"
                )
            dropped = [self._held.pop(victim) for victim in victims]
            self._bytes += held.bytes - sum(entry.bytes for entry in dropped)
            self._peak = max(self._peak, self._bytes)
            self._counts["evictions"] += len(dropped)
            self._held[key] = held
        return dropped

    def _victims(self, held: _Held[V]) -> tuple[list[str], int]:
        """Return what to drop, used longest ago first, and the bytes that are free then."""
        free, found = self.budget_bytes - self._bytes, []
        for name, entry in self._held.items():
            if free >= held.bytes:
                break
            if not (_in_use(entry) or (held.ahead and entry.ahead)):
                found.append(name)
                free += entry.bytes
        return found, free

    def _read_ahead(self, keys: tuple[str, ...]) -> ReadAhead:
        ready: list[str] = []
        failed: dict[str, Exception] = {}
        for i, key in enumerate(keys):
            try:
                self._read_one(key)
            except _NoRoomError:
                return ReadAhead(tuple(ready), keys[i:], failed)
            except Exception as cause:  # noqa: BLE001 it goes to whoever reads the result
                failed[key] = cause
            else:
                ready.append(key)
        return ReadAhead(tuple(ready), (), failed)

    def _read_one(self, key: str) -> None:
        with self._lock:
            if self._closed:
                raise _NoRoomError("the cache is closed; make a new one")
            if key in self._held or key in self._jobs:
                return
            self._counts["read_ahead"] += 1
            job = self._begin(key)
        self._run(key, job, leases=0)

    def _pinned_bytes(self) -> int:
        return sum(entry.bytes for entry in self._held.values() if _in_use(entry))


def _in_use(entry: _Held[V]) -> bool:
    return entry.leases + entry.pins > 0
