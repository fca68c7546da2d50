"""Whether pictures show what their captions say, by a CLIP.

The CLIP score is the mean of 100 max(cos(picture, caption), 0) (Hessel et al. 2021, arXiv:2104.08718, whose factor is
2.5 in place of 100). Its scale depends on the CLIP, so it stands beside that of real pictures with their own captions.
Retrieval asks for less: among all captions, is a picture's own the nearest, or among the five nearest?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 4096  # pictures whose similarities to all captions are held


class Matching(NamedTuple):
    """What a CLIP says of pictures and their captions.

    Attributes:
        score: see the module.
        first, five: the shares of the pictures whose own caption is the nearest, or among the five nearest. Captions
            that are equally near share the place: one of n that are nearest counts 1 / n.
        captions: how many different ones there were to choose from.
    """

    score: float
    first: float
    five: float
    captions: int


def match(pictures: Tensor, captions: Sequence[str], texts: dict[str, Tensor]) -> Matching:
    """Compare pictures with their captions, and these with all others.

    Args:
        pictures: (N, P) embeddings of pictures.
        captions: that of each picture.
        texts: the embedding (P,) of every caption to choose from; those of the pictures are among them.
    """
    place = {caption: k for k, caption in enumerate(texts)}
    own = torch.tensor([place[caption] for caption in captions])
    pictures, candidates = (F.normalize(x.double(), dim=-1) for x in (pictures, torch.stack([*texts.values()])))
    scores, firsts, fives = [], [], []
    for rows, wanted in zip(pictures.split(_ROWS), own.split(_ROWS), strict=True):
        similar = rows @ candidates.T  # (rows, captions)
        mine = similar.gather(1, wanted[:, None])
        scores.append(100 * mine[:, 0].clamp(min=0))
        nearer, level = (similar > mine).sum(1), (similar == mine).sum(1)
        firsts.append(((1 - nearer) / level).clamp(0, 1))
        fives.append(((5 - nearer) / level).clamp(0, 1))
    score, first, five = (torch.cat(found).double().mean().item() for found in (scores, firsts, fives))
    return Matching(score, first, five, len(texts))
