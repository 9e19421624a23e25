"""The cache of prepared deltas: against a naive model, under threads, and bytes that come back."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graftwork.errors import CapacityError, ConfigError, InputError
from graftwork.serving import Residency

KEYS = "abcdefgh"
SIZES = {key: 1 + i for i, key in enumerate(KEYS)}
BUDGET = 12


class Value:
    """A prepared thing: weakly referable, and it says what it takes."""

    def __init__(self, key: str) -> None:
        self.key, self.bytes = key, SIZES[key[0]]


def small(budget: int = BUDGET, prepare=Value) -> Residency[Value]:
    return Residency(budget, prepare, lambda value: value.bytes)


class Model(RuleBasedStateMachine):
    """The same by lists: `order` from longest ago to latest, `uses` with a mark a lease or pin."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = small()
        self.order: list[str] = []
        self.uses: list[str] = []
        self.pins: list[str] = []
        self.ahead: set[str] = set()
        self.open: list[tuple[str, ExitStack]] = []
        self.counts = {"hits": 0, "misses": 0, "evictions": 0, "failures": 0, "read_ahead": 0}

    def teardown(self) -> None:
        for _, stack in self.open:
            stack.close()
        self.cache.close()

    def admit(self, key: str, ahead: bool) -> bool:
        """Do what the cache must, and tell whether the value is held afterwards."""
        kept, dropped = list(self.order), []
        for name in self.order:
            if sum(SIZES[k] for k in kept) + SIZES[key] <= BUDGET:
                break
            if name not in self.uses and not (ahead and name in self.ahead):
                kept.remove(name)
                dropped.append(name)
        if sum(SIZES[k] for k in kept) + SIZES[key] > BUDGET:
            self.counts["failures"] += 1
            return False
        self.order = [*kept, key]
        self.ahead -= set(dropped)
        self.counts["evictions"] += len(dropped)
        return True

    def ask(self, key: str) -> bool:
        if key in self.order:
            self.counts["hits"] += 1
            self.order = [*(k for k in self.order if k != key), key]
            held = True
        else:
            self.counts["misses"] += 1
            held = self.admit(key, ahead=False)
        if held:
            self.uses.append(key)
            self.ahead.discard(key)
        return held

    @rule(key=st.sampled_from(KEYS))
    def lease(self, key: str) -> None:
        stack = ExitStack()
        if self.ask(key):
            assert stack.enter_context(self.cache.get(key)).key == key
            self.open.append((key, stack))
        else:
            with pytest.raises(CapacityError, match="are leased or pinned"):
                stack.enter_context(self.cache.get(key))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        key, stack = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        stack.close()
        self.uses.remove(key)

    @rule(key=st.sampled_from(KEYS))
    def pin(self, key: str) -> None:
        if self.ask(key):
            assert self.cache.pin(key).key == key
            self.pins.append(key)
        else:
            with pytest.raises(CapacityError):
                self.cache.pin(key)

    @rule(key=st.sampled_from(KEYS))
    def unpin(self, key: str) -> None:
        if key in self.pins:
            self.cache.unpin(key)
            self.pins.remove(key)
            self.uses.remove(key)
        else:
            with pytest.raises(InputError, match="is not pinned"):
                self.cache.unpin(key)

    @rule(key=st.sampled_from(KEYS))
    def remove(self, key: str) -> None:
        if key in self.uses:
            with pytest.raises(CapacityError, match="is in use by"):
                self.cache.remove(key)
            return
        assert self.cache.remove(key) == (SIZES[key] if key in self.order else 0)
        self.order = [k for k in self.order if k != key]
        self.ahead.discard(key)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4))
    def read_ahead(self, keys: list[str]) -> None:
        found = self.cache.read_ahead(keys).result(timeout=10)
        wanted, ready, out = list(dict.fromkeys(keys)), [], ()
        for i, key in enumerate(wanted):
            if key not in self.order:
                self.counts["read_ahead"] += 1
                if not self.admit(key, ahead=True):
                    out = tuple(wanted[i:])
                    break
                self.ahead.add(key)
            ready.append(key)
        assert (found.ready, found.left_out, found.failed) == (tuple(ready), out, {})

    @invariant()
    def agrees(self) -> None:
        found = self.cache.statistics()
        assert self.cache.keys() == tuple(self.order)
        assert all((key in self.cache) == (key in self.order) for key in KEYS)
        assert found.bytes == sum(SIZES[k] for k in self.order) <= BUDGET
        assert found.pinned_bytes == sum(SIZES[k] for k in set(self.uses))
        assert found.bytes <= found.peak_bytes <= BUDGET
        assert found.entries == len(self.order)
        assert found.waits == 0
        assert {name: getattr(found, name) for name in self.counts} == self.counts


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class Hammer:
    """Asks at random from many threads, and notes what must not be."""

    def __init__(self, budget: int) -> None:
        self.running: dict[str, int] = dict.fromkeys(KEYS, 0)
        self.faults: list[str] = []
        self.guard = threading.Lock()
        self.cache = small(budget, self.prepare)

    def prepare(self, key: str) -> Value:
        with self.guard:
            self.running[key] += 1
            if self.running[key] > 1:
                self.faults.append(f"{key} is prepared twice at once")
        time.sleep(0.0005)
        with self.guard:
            self.running[key] -= 1
        return Value(key)

    def ask(self, draw: random.Random) -> None:
        key = draw.choice(KEYS)
        with self.cache.get(key) as value:
            if value.key != key or key not in self.cache:
                self.faults.append(f"{key} was {value.key}, or was dropped under its lease")
            if draw.random() < 0.2:
                self.cache.read_ahead(draw.sample(KEYS, 2))

    def work(self, seed: int) -> int:
        """Ask 150 times; return how many were refused."""
        draw, refused = random.Random(seed), 0
        for _ in range(150):
            try:
                self.ask(draw)
            except CapacityError:
                refused += 1
            if self.cache.statistics().bytes > self.cache.budget_bytes:
                self.faults.append("over the budget")
            if draw.random() < 0.1:
                with suppress(CapacityError):
                    self.cache.remove(draw.choice(KEYS))
        return refused


@pytest.mark.parametrize("budget", [10, 40])
def test_eight_threads_hammering(budget):
    """A value is right while it is leased, prepared once at a time, and bytes keep the budget."""
    hammer = Hammer(budget)
    with hammer.cache as cache, ThreadPoolExecutor(8) as pool:
        refused = sum(pool.map(hammer.work, range(8)))
        found = cache.statistics()
        assert not hammer.faults, hammer.faults[:3]
        assert found.hits + found.misses + found.waits == 8 * 150
        assert found.peak_bytes <= budget
        assert found.pinned_bytes == 0
        if budget == 40:  # all eight values are 36 bytes: there is always room
            assert refused == 0
            assert found.failures == found.evictions == 0
    assert cache.keys() == ()


def waiting_for(cache: Residency[Value], count: int) -> None:
    end = time.monotonic() + 10
    while cache.statistics().waits < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_one_preparation_however_many_ask():
    gate, calls = threading.Event(), []

    def prepare(key: str) -> Value:
        calls.append(key)
        assert gate.wait(10)
        return Value(key)

    cache = small(prepare=prepare)

    def ask(_: int) -> Value:
        with cache.get("c") as value:
            return value

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, i) for i in range(8)]
        waiting_for(cache, 7)
        # the lock is free while a value is prepared
        assert "c" not in cache
        with pytest.raises(CapacityError, match="'c' is being prepared; remove it when it is done"):
            cache.remove("c")
        gate.set()
        assert len({id(job.result(10)) for job in asked}) == 1
    assert calls == ["c"]
    found = cache.statistics()
    assert (found.misses, found.waits, found.hits) == (1, 7, 0)
    assert found.pinned_bytes == 0


def test_an_error_reaches_all_who_wait_and_is_not_remembered():
    gate, calls = threading.Event(), []

    def prepare(key: str) -> Value:
        calls.append(key)
        assert gate.wait(10)
        if len(calls) == 1:
            raise ValueError("a broken file")
        return Value(key)

    cache = small(prepare=prepare)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cache.pin, "a") for _ in range(4)]
        waiting_for(cache, 3)
        gate.set()
        for job in asked:
            with pytest.raises(ValueError, match="a broken file"):
                job.result(10)
    assert cache.statistics().failures == 1
    assert cache.keys() == ()
    assert cache.pin("a").key == "a"
    assert calls == ["a", "a"]


def test_an_interrupted_preparation_lets_the_others_go():
    gate = threading.Event()

    def prepare(key: str) -> Value:
        assert gate.wait(10)
        raise KeyboardInterrupt

    cache = small(prepare=prepare)
    with ThreadPoolExecutor(1) as pool:
        caught: list[BaseException] = []

        def first() -> None:
            try:
                cache.pin("a")
            except KeyboardInterrupt as cause:
                caught.append(cause)

        one = threading.Thread(target=first)
        one.start()
        while cache.statistics().misses == 0:
            time.sleep(0.001)
        other = pool.submit(cache.pin, "a")
        waiting_for(cache, 1)
        gate.set()
        one.join(10)
        with pytest.raises(
            CapacityError, match="the preparation of 'a' was interrupted; ask again"
        ):
            other.result(10)
    assert len(caught) == 1


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match="budget_bytes: 1 or more, not 0"):
        small(0)
    cache = small(7)
    with pytest.raises(CapacityError, match=r"'h' takes 8 bytes, more than the whole budget of 7"):
        cache.pin("h")
    cache.pin("d")
    with cache.get("b"), pytest.raises(CapacityError) as caught:
        cache.pin("c")
    assert str(caught.value) == (
        "'c' takes 3 bytes, and of the budget of 7 only 1 can be had: 6 are leased or pinned; end "
        "leases or unpin, run fewer tasks at once, or give the cache more"
    )
    cache.pin("c")
    with pytest.raises(CapacityError, match="'c' is in use by 0 leases and 1 pins; end them"):
        cache.remove("c")
    negative = Residency(5, Value, lambda _: -1)
    with pytest.raises(InputError, match=r"size\(\) of 'a' is -1, it must be 0 or more"):
        negative.pin("a")

    def of_itself(key: str) -> Value:
        return cyclic.pin(key)

    cyclic = small(5, of_itself)
    with pytest.raises(InputError, match="the preparation of 'a' asks for 'a' itself"):
        cyclic.pin("a")


def test_a_failed_size_is_no_entry():
    cache: Residency[Value] = Residency(5, Value, lambda value: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.pin("a")
    assert cache.statistics().failures == 2
    assert cache.statistics().bytes == 0


def test_reading_ahead_hands_its_errors_over_and_stops_when_closed():
    gate, begun = threading.Event(), threading.Event()

    def prepare(key: str) -> Value:
        if key == "b":
            raise ValueError("a broken file")
        if key == "d":
            begun.set()
            assert gate.wait(10)
        return Value(key)

    cache = small(prepare=prepare)
    found = cache.read_ahead("aba").result(10)
    assert found.ready == ("a",)
    assert str(found.failed["b"]) == "a broken file"
    cache.pin("a")
    running, queued = cache.read_ahead("dac"), cache.read_ahead("e")
    assert begun.wait(10)
    closing = threading.Thread(target=cache.close)
    closing.start()
    while not queued.cancelled():
        time.sleep(0.001)
    gate.set()
    closing.join(10)
    assert running.result(10).left_out == ("a", "c")
    assert cache.keys() == ("a",)  # it is pinned
    for action in (lambda: cache.pin("a"), lambda: cache.read_ahead("a")):
        with pytest.raises(CapacityError, match="the cache is closed"):
            action()


def test_who_waits_for_reading_ahead_gets_room_that_it_would_not():
    """A request may drop what was read ahead; reading ahead may not."""
    gate = threading.Event()

    def prepare(key: str) -> Value:
        if key == "h":
            assert gate.wait(10)
        return Value(key)

    cache = small(10, prepare)
    cache.read_ahead("dc").result(10)
    ahead = cache.read_ahead("h")
    with ThreadPoolExecutor(1) as pool:
        while cache.statistics().read_ahead < 3:
            time.sleep(0.001)
        asked = pool.submit(cache.pin, "h")
        waiting_for(cache, 1)
        gate.set()
        assert asked.result(10).key == "h"
    assert ahead.result(10).ready == ("h",)
    assert cache.keys() == ("h",)
    cache.close()


def test_values_die_when_they_are_dropped():
    """No reference is left: not in the tables, a future, an error or the worker."""
    made: list[weakref.ref[Value]] = []

    def prepare(key: str) -> Value:
        value = Value(key)
        made.append(weakref.ref(value))
        return value

    gc.disable()
    try:
        cache = small(8, prepare)
        with cache.get("a"):
            pass
        with cache.get("h"):
            assert made[0]() is None
            with pytest.raises(CapacityError) as caught:
                cache.pin("b")
            assert made[2]() is None, "the error that is still at hand holds the value"
        assert cache.remove("h") == SIZES["h"]
        assert made[1]() is None
        assert cache.statistics().bytes == 0
        ahead = cache.read_ahead("de")
        assert ahead.result(10).left_out == ("e",)
        assert [ref() is None for ref in made[3:]] == [False, True]
        cache.close()
        assert made[3]() is None
        assert caught.value is not None
    finally:
        gc.enable()


def resident() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if "VmRSS" in line).split()[1])


def test_law08_bytes_go_back_to_the_system():
    """Of 16 values never more than three are there, and none after the end.

    They are larger than what malloc keeps for itself (32 MiB at most).
    """
    each = 40 << 20
    cache: Residency[torch.Tensor] = Residency(
        3 * each, lambda key: torch.full((each,), ord(key[0]), dtype=torch.uint8), len
    )
    before, most = resident(), 0
    for i in range(16):
        with cache.get(f"{i}") as value:
            assert int(value[-1]) == ord(f"{i}"[0])
            most = max(most, resident() - before)
        del value
    assert most <= 3.3 * each
    held = cache.keys()
    assert [cache.remove(key) for key in held] == [each] * 3
    assert resident() - before <= 0.3 * each


def test_law08_asking_costs_the_same_however_many_are_held():
    times = {}
    for count in (200, 20_000):
        cache: Residency[int] = Residency(count, lambda key: 1, int)
        for i in range(count):
            with cache.get(str(i)):
                pass
        rounds = []
        for _ in range(7):
            begun = time.perf_counter()
            for i in range(200):
                with cache.get(str(i)):
                    pass
            rounds.append(time.perf_counter() - begun)
        times[count] = min(rounds)
        cache.close()
    assert times[20_000] < 5 * times[200]


def test_two_caches_share_nothing():
    one, other = small(), small()
    one.pin("a")
    assert other.keys() == ()
    assert other.statistics().misses == 0
    with pytest.raises(InputError, match="'a' is not pinned"):
        other.unpin("a")
