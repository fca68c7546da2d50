"""How long captions are, in tokens of the model that is to read them."""

from __future__ import annotations

from typing import Any

from ldm.weights.clip_vocabulary import WINDOW
from ldm.weights.opening import Loading, locate
from ldm.weights.papers import read_papers, tokenizer_of, usual_tokenizer

_MARKS = 2  # tokens of a window that are its start and its end


class Tokens:
    """Counts the tokens of captions.

    Args:
        tokenizer: transformers' CLIPTokenizer.
        prefix: what training puts before every caption.

    Attributes:
        window: tokens that a window of the text encoder holds, without start and end.
    """

    def __init__(self, tokenizer: Any, prefix: str = "") -> None:
        self._tokenizer, self._prefix = tokenizer, prefix
        self.window = min(int(tokenizer.model_max_length), WINDOW) - _MARKS

    def __call__(self, caption: str) -> int:
        return len(self._tokenizer(self._prefix + caption, add_special_tokens=False, verbose=False).input_ids)


def tokenizer_at(place: str | None, how: Loading) -> Any:
    """The first tokenizer of a model, or, where none is named or the model brings none, CLIP's own.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    if place is None:
        return usual_tokenizer({})
    papers = read_papers(locate(place, how), how.allow_pickle)
    files = papers.tokenizers.get("tokenizer") or papers.tokenizers.get("tokenizer_2")
    return tokenizer_of(files) if files else usual_tokenizer({})
