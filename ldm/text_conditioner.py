"""Prompts as contexts, through the text towers of CLIP (Rombach et al. 2022, section 3.3).

A prompt longer than the tower's window is cut into windows of window - 2 tokens, each with its own start and
end token, whose states are joined. Stable Diffusion 1 and 2 have one tower and read its last, normalised states;
SDXL (Podell et al. 2023, section 2.1) has two and reads the states before the last layer of both, side by side, and
the second's projected vector of the whole prompt. Words are weighed by scaling their states, after which the mean
of the window is brought back to what it was, as AUTOMATIC1111's web UI does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.conditioner import Condition
from ldm.diffusion.context import Context
from ldm.errors import UserError
from ldm.flops import metered
from ldm.prompts import Span, expand, parse, plain

_SURROGATE = re.compile("[\ud800-\udfff]")


class Tower(NamedTuple):
    """A text encoder and its tokenizer.

    Attributes:
        encoder: transformers' CLIPTextModel or, where there is a vector of the whole prompt to be had,
            CLIPTextModelWithProjection.
        tokenizer: transformers' CLIPTokenizer.
    """

    encoder: Any
    tokenizer: Any


class _Tokens(NamedTuple):
    """A prompt for one tower: a row of ids and weights per window, without start and end."""

    ids: list[list[int]]
    weights: list[list[float]]


class TextConditioner:
    """A prompt through one text tower, or through the two of SDXL.

    All prompts of a call are padded to the same number of windows.

    Attributes:
        towers: frozen.
        window: tokens in a window, its start and end included.
        zero_for_none: the condition None is a context of zeros rather than that of the empty prompt (SDXL).
        remember: contexts of so many prompts are kept, as captions and the empty prompt recur.
        together: encode the prompts of a call in one batch. Off, and in float32 on a CPU, one by one: then no prompt's
            context depends, in its last bits, on the others.
    """

    accepts = "a prompt in words"

    def __init__(self, *towers: Tower, zero_for_none: bool = False, remember: int = 1024) -> None:
        """The towers are frozen here."""
        self.towers = towers
        for tower in towers:
            tower.encoder.eval().requires_grad_(False)
        self.window = min(int(tower.encoder.config.max_position_embeddings) for tower in towers)
        self.zero_for_none = zero_for_none
        self.remember, self.together = remember, True
        self._known: dict[tuple[Any, ...], Context] = {}

    def forget(self) -> None:
        """Encode every prompt anew from now on, because a tower or its words have changed."""
        self._known.clear()

    @property
    def width(self) -> int:
        """D of the context."""
        return sum(int(tower.encoder.config.hidden_size) for tower in self.towers)

    @property
    def pooled_width(self) -> int | None:
        """P of the context's pooled vector; None where there is none."""
        return int(self.towers[-1].encoder.config.projection_dim) if len(self.towers) > 1 else None

    def encode(self, conditions: Sequence[Condition], *, weighted: bool = False, clip_skip: int = 1) -> Context:
        """One prompt per picture to their contexts.

        Args:
            conditions: prompts; None is the empty one.
            weighted: read the syntax of ``ldm.prompts``.
            clip_skip: which layer's states are read, from the last: 1 is the one that the model was trained with,
                2 the one before it.

        Raises:
            UserError: there are not so many layers.
        """
        self._check_skip(clip_skip)
        tokens = {c: self._tokens(c, weighted) for c in dict.fromkeys(conditions)}
        windows = max(len(found[0].ids) for found in tokens.values())
        keys = {c: (c, windows, weighted, clip_skip) for c in tokens}
        unknown = [c for c in tokens if keys[c] not in self._known]
        if len(self._known) + len(unknown) > self.remember:
            self._known.clear()
            unknown = list(tokens)
        for part in self._batches(unknown):
            found = self._run([tokens[c] for c in part], windows, clip_skip)
            for i, condition in enumerate(part):
                row = found.rows(i, i + 1)
                empty = condition is None and self.zero_for_none
                self._known[keys[condition]] = row.map(torch.zeros_like) if empty else row
        rows = [self._known[keys[c]] for c in conditions]
        return Context(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*rows, strict=True)))

    def length(self, condition: Condition, *, weighted: bool = False) -> int:
        return self.window * len(self._tokens(condition, weighted)[0].ids)

    def _check_skip(self, skip: int) -> None:
        # The states before the first layer are those of no layer.
        layers = min(int(tower.encoder.config.num_hidden_layers) for tower in self.towers) - (len(self.towers) > 1)
        if not 1 <= skip <= layers:
            raise UserError(f"clip_skip should be from 1 (as trained) to {layers}, the layers to be had; got {skip}")

    def _batches(self, unknown: list[Condition]) -> list[list[Condition]]:
        weight = next(self.towers[0].encoder.parameters())
        if not self.together or (weight.device.type == "cpu" and weight.dtype == torch.float32):
            return [[condition] for condition in unknown]
        return [unknown] if unknown else []

    def _tokens(self, condition: Condition, weighted: bool) -> list[_Tokens]:
        """The prompt for every tower, all with as many windows."""
        prompt = "" if condition is None else str(condition)
        if _SURROGATE.search(prompt):
            raise UserError(f"the prompt {prompt!r} holds what is no character: is it UTF-8?")
        parts = parse(prompt) if weighted else plain(prompt)
        found = [self._windows(parts, tower.tokenizer) for tower in self.towers]
        most = max(len(tokens.ids) for tokens in found)
        for tokens in found:
            _extend(tokens, most)
        return found

    def _windows(self, parts: list[list[Span]], tokenizer: Any) -> _Tokens:
        room, ids, weights = self.window - 2, [], []
        for part in parts:
            row: list[tuple[int, float]] = []
            for text, weight in part:
                words = expand(text, tokenizer)
                row += [(i, weight) for i in tokenizer(words, add_special_tokens=False, verbose=False).input_ids]
            for start in range(0, max(1, len(row)), room):
                ids.append([i for i, _ in row[start : start + room]])
                weights.append([weight for _, weight in row[start : start + room]])
        return _Tokens(ids, weights)

    def _run(self, prompts: list[list[_Tokens]], windows: int, clip_skip: int) -> Context:
        """Prompts of at most ``windows`` windows to their contexts (B, windows * window, D)."""
        states, pooled = [], None
        for i, tower in enumerate(self.towers):
            rows = [prompt[i] for prompt in prompts]
            for row in rows:
                _extend(row, windows)
            found, vectors = self._run_tower(tower, rows, clip_skip)
            states.append(found.reshape(len(prompts), windows * self.window, -1))
            pooled = vectors.reshape(len(prompts), windows, -1)[:, 0] if vectors is not None else None
        return Context(torch.cat(states, dim=-1).float(), None if pooled is None else pooled.float())

    def _run_tower(self, tower: Tower, rows: list[_Tokens], clip_skip: int) -> tuple[Tensor, Tensor | None]:
        """States (B windows, window, D), weighed, and the projected vectors (B windows, P) where two towers are."""
        encoder, both = tower.encoder, len(self.towers) > 1
        start, end, pad = (getattr(tower.tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad"))
        room = self.window - 2
        ids = [[start, *part, end, *[pad] * (room - len(part))] for row in rows for part in row.ids]
        tokens = torch.tensor(ids).to(encoder.device, non_blocking=True)  # made there, the host would wait
        with torch.no_grad(), metered(encoder, input_ids=tokens):
            out = encoder(tokens, output_hidden_states=both or clip_skip > 1)
            if both:  # not normalised, and from the layer before the last on
                states = out.hidden_states[-1 - clip_skip]
            elif clip_skip > 1:
                states = encoder.final_layer_norm(out.hidden_states[-clip_skip])
            else:
                states = out.last_hidden_state
        weights = [[1.0, *part, 1.0, *[1.0] * (room - len(part))] for row in rows for part in row.weights]
        return _weigh(states, torch.tensor(weights)), getattr(out, "text_embeds", None)


def _extend(tokens: _Tokens, windows: int) -> None:
    for rows in tokens:
        rows.extend([] for _ in range(windows - len(rows)))


def _weigh(states: Tensor, weights: Tensor) -> Tensor:
    """Scale states (B, L, D) by weights (B, L) on the CPU, and each window back to its mean."""
    if bool((weights == 1).all()):
        return states
    states, weights = states.float(), weights.to(states.device, non_blocking=True)
    weighed = states * weights[:, :, None]
    mean, found = states.mean((1, 2), keepdim=True), weighed.mean((1, 2), keepdim=True)
    plain_rows = (weights == 1).all(1)[:, None, None]  # left as they are, to the last bit
    return torch.where(plain_rows, states, weighed * (mean / found))
