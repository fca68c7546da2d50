"""What a picture should show, as the context that the U-Net's cross-attention reads.

A conditioner maps a list of conditions, one per picture, to a context (B, L, D). The condition ``None`` means
"anything": training drops some conditions to it, and guidance contrasts with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.errors import UserError

Condition = str | int | None


class Conditioner(Protocol):
    """Conditions to context.

    Attributes:
        accepts: what a condition is, in words, for messages.
    """

    accepts: str

    def encode(self, conditions: Sequence[Condition]) -> Tensor | None:
        """One condition per picture to a context (B, L, D), or None where the network reads none."""
        ...

    def length(self, condition: Condition) -> int:
        """L of the context of this condition alone."""
        ...


class NoConditioner:
    """For unconditional networks."""

    accepts = "nothing: the model is unconditional"

    def encode(self, conditions: Sequence[Condition]) -> Tensor | None:
        for condition in conditions:
            if condition is not None and condition != "":
                raise UserError(f"the model is unconditional and cannot be asked for {condition!r}")
        return None

    def length(self, condition: Condition) -> int:
        return 0


class LabelConditioner(nn.Module):
    """A class label as one learned token; one more token for "anything"."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes, self.width = classes, width
        self.accepts = f"a label from 0 to {classes - 1}, or nothing"
        self.embedding = nn.Embedding(classes + 1, width)

    def encode(self, conditions: Sequence[Condition]) -> Tensor:
        rows = torch.tensor([self._row(c) for c in conditions], device=self.embedding.weight.device)
        return self.embedding(rows)[:, None]  # (B, 1, D)

    def length(self, condition: Condition) -> int:
        return 1

    def _row(self, condition: Condition) -> int:
        if condition is None or condition == "":
            return self.classes
        try:
            label = int(condition)
        except ValueError:
            label = -1
        if not 0 <= label < self.classes:
            raise UserError(f"this model draws {self.accepts}; got {condition!r}")
        return label


class TextConditioner:
    """A prompt through CLIP's text tower: its last hidden states (Rombach et al. 2022, section 3.3).

    Prompts longer than the tower's window are cut into windows of window - 2 tokens, each with its own
    start and end token, whose states are joined. All prompts of a call are padded to the same number of
    windows.

    Attributes:
        encoder: transformers' CLIPTextModel, frozen.
        tokenizer: transformers' CLIPTokenizer.
    """

    accepts = "a prompt in words"

    def __init__(self, encoder: Any, tokenizer: Any, remember: int = 1024) -> None:
        """``remember``: contexts of so many prompts are kept, as captions and the empty prompt recur."""
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.window = int(encoder.config.max_position_embeddings)
        self.remember = remember
        self._known: dict[tuple[str, int], Tensor] = {}

    def encode(self, conditions: Sequence[Condition]) -> Tensor:
        prompts = ["" if c is None else str(c) for c in conditions]
        tokens = {prompt: self._token_ids(prompt) for prompt in prompts}
        windows = max(self._windows(ids) for ids in tokens.values())
        unknown = [prompt for prompt in tokens if (prompt, windows) not in self._known]
        if len(self._known) + len(unknown) > self.remember:
            self._known.clear()
            unknown = list(tokens)
        if unknown:
            for prompt, states in zip(unknown, self._run([tokens[p] for p in unknown], windows), strict=True):
                self._known[prompt, windows] = states
        return torch.stack([self._known[prompt, windows] for prompt in prompts])

    def length(self, condition: Condition) -> int:
        return self.window * self._windows(self._token_ids("" if condition is None else str(condition)))

    def _windows(self, ids: list[int]) -> int:
        return max(1, -(-len(ids) // (self.window - 2)))

    def _token_ids(self, prompt: str) -> list[int]:
        return self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids

    def _run(self, prompts: list[list[int]], windows: int) -> Tensor:
        """Token ids to states (B, windows * window, D)."""
        room, start, end = self.window - 2, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id
        rows = []
        for ids in prompts:
            for w in range(windows):
                part = ids[w * room : (w + 1) * room]
                rows.append([start, *part, end, *[pad] * (room - len(part))])
        with torch.no_grad():
            states = self.encoder(torch.tensor(rows, device=self.encoder.device)).last_hidden_state
        return states.reshape(len(prompts), windows * self.window, -1).float()
