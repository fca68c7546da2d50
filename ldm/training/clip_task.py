"""Training a CLIP from captions and pictures (Radford et al. 2021, https://arxiv.org/abs/2103.00020).

Both towers are transformers'. The loss is the symmetric cross-entropy over the similarities of a batch; where
captions of a batch are equal, each of their pictures is as right as the other (the target is shared among
them), since a small set of captions would otherwise be told that a true caption is false.
"""

from __future__ import annotations

import contextlib
import json
import string
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.example import BadExample, Source
from ldm.data.samples import Batch, TrainingSamples
from ldm.data.streaming import no_stream
from ldm.errors import UserError
from ldm.images import save_grid, to_signed
from ldm.text_conditioner import Tower
from ldm.training.clip_settings import ClipRun
from ldm.training.run_source import HOW_TO_CAPTION, source_of
from ldm.training.tasks import Borrowed, Losses, recompute_activations
from ldm.weights.components import quiet_transformers, save_tower
from ldm.weights.files import write_json

_COLUMNS = 10  # pictures beside a caption on the sheet


def learn_tokenizer(captions: list[str], vocab_size: int, window: int) -> Any:
    """A CLIP tokenizer with a byte-pair vocabulary learned from ``captions``.

    The base is all bytes, alone and as the end of a word, as in CLIP's own vocabulary, so any text can be
    written with it.
    """
    from tokenizers import pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = {token: i for i, token in enumerate([*alphabet, *(a + "</w>" for a in alphabet), start, end])}
    blank = CLIPTokenizer(vocab=base, merges=[])
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=list(base),  # in an order of our own: ties between pairs go by it, not by the order of a hash
        show_progress=False,
        min_frequency=1,
    )
    learner = blank._tokenizer
    learner.train_from_iterator(captions, trainer)
    merges: Any = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    merges = merges[: max(0, vocab_size - len(base))]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges), start, end]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=window)


class ClipPlayer(nn.Module):
    """Both towers and the learned temperature."""

    def __init__(self, clip: Any, tokenizer: Any) -> None:
        super().__init__()
        self.clip = clip
        self._tokenizer = Borrowed(tokenizer)

    def forward(self, batch: Batch, step: int) -> Losses:
        tokens = self._tokenizer.module(
            batch.captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        device = batch.images.device
        image, text = self._embed(to_signed(batch.images), tokens.to(device))
        image, text, tokens = _gather(image), _gather(text), _gather(tokens.to(device))
        logits = self.clip.logit_scale.exp().clamp(max=100.0) * (image @ text.T)
        same = (tokens[:, None] == tokens[None]).all(-1).float()
        wanted = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
        count = loss.new_full((), float(len(logits)))  # new_tensor would wait for a GPU
        hit = same[torch.arange(len(logits), device=device), logits.argmax(1)].sum()
        return Losses(loss, {"loss": (loss.detach() * count, count), "retrieval": (hit, count)})

    def _embed(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        clip = self.clip
        image = clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output)
        text = clip.text_projection(clip.text_model(input_ids=tokens).pooler_output)
        return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def _gather(rows: Tensor) -> Tensor:
    """Rows of all processes, with gradients: every process contrasts with the whole batch."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    if rows.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(list(all_gather(rows)))
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class ClipTask:
    """See :class:`ldm.training.tasks.Task`."""

    def __init__(self, run: ClipRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self.source = source_of(run)
        if not self.source.captioned:
            raise UserError(f"task clip needs captions, and {self.source.name} has none: {HOW_TO_CAPTION}")
        if self.source.stream:
            use = "task clip learns its vocabulary from all captions"
            raise no_stream(use, self.source, "unpack it into a folder")
        self.tokenizer = learn_tokenizer(
            _all_captions(self.source), run.text.vocab_size, run.text.max_position_embeddings
        )
        self.samples = TrainingSamples(
            self.source,
            run.seed,
            frame=run.frame,
            captions=run.captions,
            condition="text",
            flip=run.flip,
            skip_bad=run.skip_bad,
        )
        self.player = ClipPlayer(self._build(), self.tokenizer)
        if run.train.gradient_checkpointing:
            recompute_activations(self.player.clip)
        self.players: dict[str, nn.Module] = {"clip": self.player}

    def _build(self) -> Any:
        from transformers import CLIPConfig, CLIPModel

        run, tokenizer = self.run, self.tokenizer
        text = {
            **run.text.model_dump(),
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        height, width = self.samples.size
        if height != width or height % run.image.patch_size:
            raise UserError(f"pictures of {height}x{width} must be square and a multiple of image.patch_size")
        image = {**run.image.model_dump(), "image_size": height, "num_channels": self.source.channels}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=run.projection_dim))

    def compile(self) -> None:
        self.player.clip.vision_model.compile()
        self.player.clip.text_model.compile()

    def plays(self, player: str, step: int) -> bool:
        return True

    def save(self, folder: Path, averaged: nn.Module, provenance: dict[str, Any]) -> None:
        assert isinstance(averaged, ClipPlayer)
        folder.mkdir(parents=True, exist_ok=True)
        from transformers import CLIPTextModel

        clip = averaged.clip
        encoder = CLIPTextModel(clip.config.text_config)
        encoder.load_state_dict(clip.text_model.state_dict())
        save_tower(Tower(encoder, self.tokenizer), folder)
        with quiet_transformers():
            clip.save_pretrained(folder / "clip")
        parts = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
        own = {"provenance": provenance}
        write_json(
            folder / "model_index.json",
            {"_class_name": "CLIP", **parts, "clip": ["transformers", "CLIPModel"], "_ldm": own},
        )

    @torch.no_grad()
    def draw(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        """For each of the first captions, the pictures of a small set that fit it best: a row each."""
        assert isinstance(averaged, ClipPlayer)
        examples, seed = self.samples.first(256), self.run.seed
        captions = list(dict.fromkeys(e.captions[(seed + i) % len(e.captions)] for i, e in enumerate(examples)))[:10]
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        images = to_signed(torch.stack([e.image for e in examples]))
        image, text = averaged._embed(images.to(self.device), tokens.to(self.device))
        best = (text @ image.T).topk(min(_COLUMNS, len(images)), dim=1).indices.flatten().tolist()
        return [images[k] for k in best[rank::processes]]

    def write_sheet(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        save_grid(torch.stack(pictures), path, columns=len(self.samples.first(_COLUMNS)), scale=2)
        return {}


def _all_captions(source: Source) -> list[str]:
    """Distinct captions of the source, sorted, letters and digits first so that every one is in the vocabulary."""
    found: set[str] = set()
    for index in range(len(source)):
        with contextlib.suppress(BadExample):  # told where it comes up in training
            found.update(source.words(index).captions)
    return [*string.ascii_lowercase, *string.digits, *sorted(found)]
