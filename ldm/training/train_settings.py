"""How to train, whatever is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ldm.errors import UserError
from ldm.schema import Settings


class TrainSettings(Settings):
    """How to train, whatever is trained.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_size: samples per process and micro-batch.
        gradient_accumulation: micro-batches per step.
        optimizer: ``adamw``, fused; or ``adamw8bit``, whose memory is a quarter (extra ``bitsandbytes``).
        learning_rate: peak of AdamW's learning rate.
        lr_schedule: after the warm-up, ``constant``, or ``linear`` or ``cosine`` to zero at the last step.
        lr_warmup_steps: steps of linear warm-up.
        adam_beta1, adam_beta2, weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        mixed_precision: ``no``, ``bf16`` or ``fp16`` (CUDA only) autocast.
        parallel: what several processes do with the network: ``ddp``, each has all of it; ``fsdp``, each keeps a
            share of the weights, the gradients and what the optimiser remembers.
        ema_decay: of the moving average of weights that checkpoints draw with; 0 is off.
        ema_power: warm-up, decay at step n = min(ema_decay, 1 - (1 + n)^-power).
        ema_device: where the average is kept: on the accelerator, or on the ``cpu``, which is slower and leaves the
            accelerator's memory alone.
        gradient_checkpointing: recompute activations: less memory, a third more work.
        channels_last: memory format of all networks, trained or not.
        compile: ``torch.compile`` the networks.
        workers: processes that prepare samples; 0 is the main process.
        prefetch: batches that each worker prepares ahead.
        log_every, sample_every, checkpoint_every: in steps; a checkpoint and samples are also made at the end.
        keep_checkpoints: how many of the newest to keep; where the newest is damaged, the one before it is resumed.
        trackers: where the log goes too, through Accelerate (each is an extra of its name).
    """

    steps: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    learning_rate: float = Field(default=1e-4, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = Field(default=500, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    ema_power: float = Field(default=2 / 3, gt=0, le=1)
    ema_device: Literal["accelerator", "cpu"] = "accelerator"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    workers: int = Field(default=0, ge=0)
    prefetch: int = Field(default=2, ge=1)
    log_every: int = Field(default=50, ge=1)
    sample_every: int = Field(default=1000, ge=1)
    checkpoint_every: int = Field(default=1000, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if self.parallel == "fsdp":
            for setting, other in (("optimizer", "adamw"), ("channels_last", False)):
                if getattr(self, setting) != other:
                    raise UserError(f"train.parallel fsdp needs train.{setting} {other}: others cannot be split")
            if self.mixed_precision == "fp16":
                raise UserError("train.parallel fsdp trains in bf16 or no, not in train.mixed_precision fp16")
        return self
