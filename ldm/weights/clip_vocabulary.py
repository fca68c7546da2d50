"""The tokenizer of CLIP, which every Stable Diffusion reads prompts with, for files that bring none.

A single file holds weights alone. The 48,894 merges of CLIP's byte-pair encoding (Radford et al. 2021) are in
``ldm/assets/clip_vocabulary``; the 49,408 tokens follow from them: all bytes, all bytes as the end of a word, a token
for each merge, and start and end.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

_MERGES = Path(__file__).parents[1] / "assets" / "clip_vocabulary" / "merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
WINDOW = 77


def clip_tokenizer(pad: str = END) -> Any:
    """transformers' CLIPTokenizer.

    Args:
        pad: the token that fills windows up: the end token for the tower of SD 1 and the first of SDXL; ``!``, which is
            token 0, for those that came from OpenCLIP (SD 2, the second of SDXL).
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()
    merges: Any = [tuple(line.split(" ")) for line in lines]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary: Any = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=WINDOW)
