"""Checking sources, and all that was found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ldm.data.check.checks import Captions, Faults
from ldm.data.check.copies import Copies
from ldm.data.check.facts import CountTokens
from ldm.data.check.kinds import KINDS, Problem
from ldm.data.check.looking import Examples, look_at_all
from ldm.data.check.names import Names
from ldm.data.check.shapes import Shapes
from ldm.data.example import Source
from ldm.data.framing import FrameConfig


@dataclass(frozen=True)
class Wishes:
    """What to check against.

    Attributes:
        count_tokens: the length of a caption.
        window: tokens of a window of the text encoder, without start and end.
        frame: how pictures come to the shapes of training; None: sizes are told, and none is too small.
        batch: pictures of a batch; None: no bucket is too small.
        near: bits of 64 in which the hashes of pictures that look the same may differ.
        workers: processes that open pictures; 0 is this one.
    """

    count_tokens: CountTokens
    window: int
    frame: FrameConfig | None = None
    batch: int | None = None
    near: int = 4
    workers: int = 0


@dataclass
class Report:
    """What was found.

    Attributes:
        parts: names of the sources that were checked.
        names: part and key of every example, by number.
        usable: examples that can be read.
        problems: by kind, in the order of ``KINDS``; only kinds that occurred.
        same, near: groups of numbers of pictures that are the same, or look it.
        sizes: (N, 2) int32, the height and width of every usable picture.
        buckets: (height, width) -> pictures; empty where no frame was given.
        frame: of the buckets.
        lengths: tokens -> captions.
        window: tokens of a window.
        labels: class -> examples.
        seconds: that it took.
    """

    parts: tuple[str, ...]
    names: Names
    usable: int
    problems: dict[str, list[Problem]]
    same: list[list[int]]
    near: list[list[int]]
    sizes: np.ndarray
    buckets: dict[tuple[int, int], int]
    frame: FrameConfig | None
    lengths: Counter[int]
    window: int
    labels: Counter[int]
    seconds: float

    @property
    def errors(self) -> int:
        """Problems that are errors."""
        return sum(len(found) for kind, found in self.problems.items() if KINDS[kind].error)

    @property
    def warnings(self) -> int:
        """Problems that are none."""
        return sum(len(found) for kind, found in self.problems.items() if not KINDS[kind].error)


def check_parts(parts: Sequence[Source], wishes: Wishes) -> Report:
    """Open every example of some sources, and say what is wrong with them."""
    began = time.perf_counter()
    examples, names = Examples(parts), Names()
    captions = Captions([part.captioned for part in parts], wishes.window)
    faults, shapes, copies = Faults(), Shapes(wishes.frame, wishes.batch), Copies(wishes.near)
    labels: Counter[int] = Counter()
    problems = list(_orphans(parts))
    seen = look_at_all(examples, wishes.count_tokens, wishes.workers)
    for number, facts in enumerate(tqdm(seen, "checking", len(examples), unit=" pictures", disable=None, leave=False)):
        names.add(facts.part, facts.key)
        if facts.label is not None:
            labels[facts.label] += 1
        for check in (faults, captions, shapes, copies):
            problems += check.see(number, facts)
    problems += [*copies.end(names), *shapes.end(names)]
    return Report(
        parts=tuple(part.name for part in parts),
        names=names,
        usable=faults.usable,
        problems=_by_kind(problems),
        same=copies.same,
        near=copies.near,
        sizes=shapes.sizes,
        buckets=shapes.buckets(),
        frame=wishes.frame,
        lengths=captions.lengths,
        window=wishes.window,
        labels=labels,
        seconds=time.perf_counter() - began,
    )


def _orphans(parts: Sequence[Source]) -> Iterator[Problem]:
    for number, part in enumerate(parts):
        for message in getattr(part, "orphans", ()):
            yield Problem("orphan", None, number, message, message)


def _by_kind(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.kind, []).append(problem)
    return {kind: found[kind] for kind in KINDS if kind in found}
