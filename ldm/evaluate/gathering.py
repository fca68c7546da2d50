"""Work on numbered items, shared among processes so that the result does not show how many there were.

Items are worked on in fixed batches: batch k is the same items whoever gets it, since a network may round the sums of
another batch in another order. Process r takes batches r, r + P, r + 2 P, ..., and the main process puts the results
in order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.accel import pick_device
from ldm.data.example import BadExample, Example, Source
from ldm.data.framing import cut, least_to_decode
from ldm.errors import UserError
from ldm.evaluate.features import Features
from ldm.training.parallel import Team
from ldm.training.signals import leave_to_parent

T = TypeVar("T")
AT_ONCE = 64  # pictures that a network of features is given together


@contextlib.contextmanager
def processes(device: str | None = None) -> Iterator[tuple[Team, torch.device]]:
    """The processes that there are (``torchrun`` starts several), and the device of this one.

    Args:
        device: its name; None is the GPU of this process, if there is one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team(0, 1), pick_device(device)
        return
    from accelerate import PartialState

    on_cpu = device == "cpu" or (device is None and not torch.accelerator.is_available())
    state = PartialState(cpu=on_cpu)
    team = Team(state.process_index, state.num_processes)
    assert state.device is not None
    yield team, torch.device("cpu") if on_cpu else pick_device(device or str(state.device))
    team.part()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32, in which a GPU would round what networks of features compute to three digits."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def shares(count: int, size: int, team: Team) -> list[range]:
    """The batches of this process, of at most ``size`` of the numbers 0 .. ``count`` - 1."""
    whole = [range(start, min(start + size, count)) for start in range(0, count, size)]
    return whole[team.rank :: team.size]


def in_order(found: Iterable[tuple[range, T]], team: Team) -> list[T] | None:
    """What all processes found, each for its batches, in the order of the numbers: for the main process, else None.

    Raises:
        UserError: of any process.
    """
    with team.together():
        own = [(batch.start, value) for batch, value in found]
    collected = team.collect(own)
    if collected is None:
        return None
    return [value for _, value in sorted((pair for part in collected for pair in part), key=lambda pair: pair[0])]


class Pictures(Dataset[Any]):
    """Pictures of a source by number, all of one size.

    Args:
        source: no stream.
        chosen: which examples, in order.
        size: (height, width) that they come to: resized to cover it, and cut to the centre.
    """

    def __init__(self, source: Source, chosen: Sequence[int], size: tuple[int, int]) -> None:
        self._source, self._chosen, self._size = source, chosen, size

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, number: int) -> Example:
        """An example, as it is stored or smaller.

        Raises:
            BadExample: it cannot be used.
        """
        index = self._chosen[number]
        assert self._source.sizes is not None
        height, width = self._source.sizes[index].tolist()
        return self._source.read(index, least_to_decode((height, width), self._size))

    def __getitem__(self, numbers: range) -> Tensor | str:
        """Pictures uint8 (B, C, H, W), or what is wrong: an exception of a worker would arrive as text."""
        try:
            return torch.stack([self._cut(self.read(number)) for number in numbers])
        except BadExample as error:
            return f"{error}; `ldm data check --quarantine LIST` finds all such, and data.skip leaves them out"

    def _cut(self, example: Example) -> Tensor:
        return cut(example.image, example.original, self._size, 0.5, 0.5, False)[0]

    def batches(self, team: Team, workers: int, title: str) -> Iterator[tuple[range, Tensor]]:
        """The batches of this process, opened ahead by ``workers`` processes of its own (0: by itself).

        Raises:
            UserError: a picture cannot be used.
        """
        own = shares(len(self), AT_ONCE, team)
        loader: Any = DataLoader(
            self, sampler=own, batch_size=None, num_workers=workers, worker_init_fn=leave_to_parent
        )
        with bar(len(self), title, team) as progress:
            for batch, images in zip(own, loader, strict=True):
                if isinstance(images, str):
                    raise UserError(images)
                yield batch, images
                advance(progress, len(batch) * team.size)


@contextlib.contextmanager
def bar(total: int, title: str, team: Team) -> Iterator[Any]:
    """A bar of pictures, shown by the main process, which speaks for all."""
    with tqdm(total=total, desc=title, unit=" pictures", disable=None if team.is_main else True) as shown:
        yield shown


def advance(shown: Any, pictures: int) -> None:
    """Move a bar on; the other processes are about as far, and at the end not further."""
    shown.update(min(pictures, shown.total - shown.n))


def describe_all(
    pictures: Pictures, networks: Sequence[Features], team: Team, workers: int, title: str
) -> list[Tensor] | None:
    """The features (N, D) of pictures in each network, for the main process; None in the others.

    Raises:
        UserError: a picture cannot be used, or a network cannot read such pictures.
    """

    def described() -> Iterator[tuple[range, list[Tensor]]]:
        for batch, images in pictures.batches(team, workers, title):
            with exact_float32():
                yield batch, [network.describe(images) for network in networks]

    found = in_order(described(), team)
    return None if found is None else [torch.cat(parts) for parts in zip(*found, strict=True)]


def seen_by_all(work: Callable[[], T], team: Team) -> T:
    """What the main process finds out, for all of them.

    Raises:
        UserError: it could not.
    """
    with team.together():
        found = work() if team.is_main else None
    return team.tell(found)  # pyright: ignore[reportReturnType]
