"""What a picture should show, as the context that the U-Net's cross-attention reads.

A conditioner maps a list of conditions, one per picture, to a context. The condition ``None`` means "anything":
training drops some conditions to it, and guidance contrasts with it. That of prompts is ``ldm.text_conditioner``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from ldm.diffusion.context import Context
from ldm.errors import UserError

Condition = str | int | None


class Conditioner(Protocol):
    """Conditions to context.

    Attributes:
        accepts: what a condition is, in words, for messages.
    """

    accepts: str

    def encode(self, conditions: Sequence[Condition]) -> Context | None:
        """One condition per picture to their context, or None where the network reads none."""
        ...

    def length(self, condition: Condition) -> int:
        """L of the tokens in the context of this condition alone."""
        ...


class NoConditioner:
    """For unconditional networks."""

    accepts = "nothing: the model is unconditional"

    def encode(self, conditions: Sequence[Condition]) -> Context | None:
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

    def encode(self, conditions: Sequence[Condition]) -> Context:
        rows = torch.tensor([self._row(c) for c in conditions])
        rows = rows.to(self.embedding.weight.device, non_blocking=True)  # made there, the host would wait
        return Context(self.embedding(rows)[:, None])  # (B, 1, D)

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
