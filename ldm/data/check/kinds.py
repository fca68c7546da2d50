"""The kinds of problems that a check finds."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """One kind of problem.

    Attributes:
        title: what there are so many of.
        error: training refuses it, or learns what is not meant; else a matter of taste, which is told only.
        skipped: leaving the example out mends it.
    """

    title: str
    error: bool = True
    skipped: bool = True


KINDS = {
    "missing": Kind("pictures, captions or classes that are not there"),
    "unreadable": Kind("pictures that cannot be read"),
    "truncated": Kind("pictures that are cut off"),
    "bomb": Kind("pictures too large to open"),
    "animated": Kind("pictures of several frames"),
    "shard": Kind("damaged shards, which have lost what follows"),
    "small": Kind("pictures smaller than they are trained at"),
    "same": Kind("exact copies of another picture"),
    "uncaptioned": Kind("pictures without a caption"),
    "empty": Kind("empty captions"),
    "encoding": Kind("captions that are not valid UTF-8"),
    "words": Kind("captions and classes that cannot be used"),
    "row": Kind("lines of metadata that cannot be read"),
    "unusable": Kind("examples that cannot be used for another reason"),
    "orphan": Kind("captions without a picture, or pictures without a mention", skipped=False),
    "near": Kind("pictures that look nearly like another", error=False, skipped=False),
    "blank": Kind("pictures that show one colour only", error=False, skipped=False),
    "long": Kind("captions longer than a window of the text encoder", error=False, skipped=False),
    "cropped": Kind("pictures of which less than half is seen", error=False, skipped=False),
    "sparse": Kind("buckets with fewer pictures than a batch", error=False, skipped=False),
}


class Problem(NamedTuple):
    """Something wrong.

    Attributes:
        kind: a key of ``KINDS``.
        number: of the example, in the order they were looked at; None where there is no example.
        part: of the mixed sources, the one it is in; 0 where there is one.
        key: of the example, or what else it is about.
        message: what is wrong, in words that name the file.
    """

    kind: str
    number: int | None
    part: int
    key: str
    message: str
