"""Opening every example of a source once, by several processes, in order.

A decoder that is given a file made to break it may end its process. So a batch of examples whose process ended is
looked at again, one by one, and the one that ends it a second time is named.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from ldm.data.check.facts import CountTokens, Facts, Fault, Opening, facts_of
from ldm.data.example import Example, Source
from ldm.data.pictures import Pictures

Read = Callable[[], Example]
Item = tuple[int, int | tuple[str, Read]]  # a part, and an index in it, or, of a stream, a key and what opens it
_AT_ONCE = 16  # examples of a batch
_AHEAD = 3  # batches waiting for each process


class Examples:
    """All examples of some sources, each once, though a source may hold it several times."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self._distinct = [None if part.stream else _distinct(part) for part in parts]

    def __len__(self) -> int:
        pairs = zip(self.parts, self._distinct, strict=True)
        return sum(len(part) if indices is None else len(indices) for part, indices in pairs)

    def __iter__(self) -> Iterator[Item]:
        for number, (part, indices) in enumerate(zip(self.parts, self._distinct, strict=True)):
            found: Any = part.scan() if indices is None else indices.tolist()  # pyright: ignore[reportAttributeAccessIssue]
            for item in found:
                yield number, item

    def some(self, numbers: set[int]) -> Iterator[tuple[int, Read]]:
        """What opens those with these numbers, in rising order."""
        left = len(numbers)
        for number, item in enumerate(self if left else ()):
            if number in numbers:
                yield number, opener(self.parts, item).read
                left -= 1
                if not left:  # the rest of a stream need not be read
                    return


def opener(parts: Sequence[Source], item: Item) -> Opening:
    """What opens an example."""
    number, found = item
    if not isinstance(found, int):
        return Opening(*found)
    part = parts[number]
    picture = partial(part.picture, found) if isinstance(part, Pictures) else None
    return Opening(part.key(found), partial(part.read, found), picture)


def _distinct(part: Source) -> np.ndarray:
    """Of every key, the first index that has it, rising."""
    hashes = np.fromiter((hash(part.key(i)) for i in range(len(part))), np.int64, len(part))
    return np.sort(np.unique(hashes, return_index=True)[1])


class _Looker:
    """What each process has: the sources and the tokenizer, inherited or sent once."""

    def __init__(self, parts: Sequence[Source], count_tokens: CountTokens) -> None:
        self.parts, self.count_tokens = parts, count_tokens

    def __call__(self, items: Sequence[Item]) -> list[Facts]:
        found = []
        for item in items:
            found.append(facts_of(item[0], opener(self.parts, item), self.count_tokens))
        return found


_looker: _Looker | None = None  # of a worker process


def _begin(looker: _Looker) -> None:
    global _looker
    _looker = looker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process hears it, and ends the others
    torch.set_num_threads(1)


def _look(items: Sequence[Item]) -> list[Facts]:
    assert _looker is not None
    return _looker(items)


def look_at_all(examples: Examples, count_tokens: CountTokens, workers: int) -> Iterator[Facts]:
    """The facts of every example, in order.

    Args:
        examples: what to look at.
        count_tokens: the length of a caption.
        workers: processes that open examples; 0 is this one.
    """
    looker = _Looker(examples.parts, count_tokens)
    items = iter(examples)
    batches = iter(lambda: list(islice(items, _AT_ONCE)), [])
    if workers == 0:
        for batch in batches:
            yield from looker(batch)
        return
    with _Pool(looker, workers) as pool:
        for batch in batches:
            pool.add(batch)
            if pool.full:
                yield from pool.next()
        while pool.waiting:
            yield from pool.next()


class _Pool:
    """Processes that survive the end of one of them."""

    def __init__(self, looker: _Looker, workers: int) -> None:
        self._looker, self._workers = looker, workers
        self._pool = self._fresh(workers)
        self.waiting: deque[tuple[list[Item], Future[list[Facts]]]] = deque()

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def full(self) -> bool:
        return len(self.waiting) >= self._workers * _AHEAD

    def add(self, batch: list[Item]) -> None:
        try:
            self.waiting.append((batch, self._pool.submit(_look, batch)))
        except BrokenProcessPool:  # already known by the next that is asked for
            broken: Future[list[Facts]] = Future()
            broken.set_exception(BrokenProcessPool())
            self.waiting.append((batch, broken))

    def next(self) -> list[Facts]:
        """The facts of the batch that was added first."""
        batch, future = self.waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            return self._mended(batch)

    def _mended(self, batch: list[Item]) -> list[Facts]:
        facts = [fact for item in batch for fact in self._alone(item)]
        self._pool.shutdown()
        self._pool = self._fresh(self._workers)
        for _ in range(len(self.waiting)):
            old, future = self.waiting.popleft()
            if future.done() and future.exception() is None:
                self.waiting.append((old, future))
            else:
                self.add(old)
        return facts

    def _alone(self, item: Item) -> list[Facts]:
        with self._fresh(1) as pool:
            try:
                return pool.submit(_look, [item]).result()
            except BrokenProcessPool:
                key = opener(self._looker.parts, item).key
                told = "the process that opened it came to an end, by a crash or for its memory"
                fault = Fault("unreadable", f"{key}: {told}")
                return [Facts(item[0], key, (fault,))]

    def _fresh(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, initializer=_begin, initargs=(self._looker,))


def usual_workers() -> int:
    """As many processes as there are processors for this one, but not more than 16."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
