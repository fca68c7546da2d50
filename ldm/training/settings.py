"""The settings of a training run: what a configuration file may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ldm.cache.settings import CacheConfig
from ldm.data.caption_forms import CaptionConfig
from ldm.data.framing import FrameConfig
from ldm.data.sources import SourceConfig
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import IdleError, UserError
from ldm.models.toy import ToyUNetConfig
from ldm.models.unet import UNetConfig
from ldm.models.vae import VAEConfig
from ldm.schema import Settings
from ldm.training.train_settings import TrainSettings
from ldm.training.tune_settings import FullTune, MaskConfig, MemorisedConfig, PriorConfig, TuneConfig, ValidationConfig
from ldm.weights.opening import Loading


class PixelCodecConfig(Settings):
    """Diffuse pixels."""

    kind: Literal["pixel"] = "pixel"


class VAECodecConfig(Settings):
    """Diffuse the latents of a VAE.

    Attributes:
        path: a run or model folder with a ``vae``.
    """

    kind: Literal["vae"]
    path: Path


class NoConditionConfig(Settings):
    """An unconditional network."""

    kind: Literal["none"] = "none"


class LabelConditionConfig(Settings):
    """A class label as one learned token.

    Attributes:
        classes: labels are 0 .. classes - 1.
        drop: share of samples whose label is dropped, which trains the unconditional branch.
    """

    kind: Literal["label"]
    classes: int = Field(ge=1)
    drop: float = Field(default=0.1, ge=0, le=1)


class TextConditionConfig(Settings):
    """Captions through a CLIP text tower.

    Attributes:
        path: a run or model folder with ``text_encoder`` and ``tokenizer``.
        drop: share of samples whose caption is dropped.
    """

    kind: Literal["text"]
    path: Path
    drop: float = Field(default=0.1, ge=0, le=1)


class ModelConditionConfig(Settings):
    """The conditions of the model that training starts from.

    Attributes:
        drop: share of samples whose condition is dropped.
    """

    kind: Literal["model"] = "model"
    drop: float = Field(default=0.1, ge=0, le=1)


CodecConfig = Annotated[PixelCodecConfig | VAECodecConfig, Field(discriminator="kind")]
ConditionConfig = Annotated[
    NoConditionConfig | LabelConditionConfig | TextConditionConfig | ModelConditionConfig, Field(discriminator="kind")
]


class SampleSettings(Settings):
    """How a run, and the model it leaves, draws by default.

    Attributes:
        sampler, steps, guidance: as in ``ldm generate``; by default as the model does that training starts from, and
            ``ddim``, 50 and 1 for a new one.
        conditions: what the pictures of the sample sheet show, in turn. Where empty, what the first pictures of the
            data do, where training starts from a finished model; else nothing in particular.
        count: pictures on the sheet.
        columns: pictures in a row.
    """

    sampler: str | None = None
    steps: int | None = Field(default=None, ge=1)
    guidance: float | None = None
    conditions: tuple[str | int, ...] = ()
    count: int = Field(default=40, ge=1)
    columns: int = Field(default=10, ge=1)


class RunSettings(Settings):
    """What every task's configuration has.

    Attributes:
        seed: of the order of samples, of all noise and of the first weights.
        output: the run's folder.
        data: where the pictures are.
        frame: the shapes that pictures come to; without it, they must all have one size, and keep it.
        captions: what is done to captions.
        flip: mirror half of the pictures.
        limit: learn from so many of the pictures only, evenly spread over the source.
    """

    seed: int = Field(default=0, ge=0)
    output: Path
    data: SourceConfig
    frame: FrameConfig | None = None
    captions: CaptionConfig = CaptionConfig()
    flip: bool = False
    limit: int | None = Field(default=None, ge=1)
    train: TrainSettings

    @property
    def skip_bad(self) -> int:
        """How many examples that cannot be used are allowed."""
        return getattr(self.data, "skip_bad", 0)


class ModelRun(RunSettings):
    """What has parts that stay as they are.

    Attributes:
        loading: which weights of a finished model, as arguments of ``ldm.load``.
        cache: what the VAE and the text encoder give is kept in files; training then needs neither.
        frozen_dtype: of weights that are not trained; half precision needs the same ``train.mixed_precision``.
    """

    loading: Loading = Loading()
    cache: CacheConfig | None = None
    frozen_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _check_frozen(self) -> ModelRun:
        if self.frozen_dtype not in ("fp32", self.train.mixed_precision):
            told = f"frozen_dtype {self.frozen_dtype} needs train.mixed_precision {self.frozen_dtype}"
            raise UserError(
                f"{told}, as what is trained would meet it in another precision; it is {self.train.mixed_precision}"
            )
        return self


class DiffusionRun(ModelRun):
    """Pixel or latent diffusion, from first weights or from a finished model.

    Attributes:
        unet, toy: shape of a new network; one of them, or ``model``.
        model: a finished model to start from, as ``ldm generate --model`` takes it.
        tune: what of it is trained.
        process: of a new network; plain DDPM by default.
        prediction: what the network's output means; ``epsilon``, or as ``model`` has it.
        snr_gamma: min-SNR weights of the loss (5 is usual).
        offset_noise: standard deviation of noise that is one number for a whole channel, which teaches very dark and
            very bright pictures (0.0357 is usual).
        codec: what a new network diffuses; pixels by default.
        condition: what conditions a new network; nothing by default. Beside ``model``, of kind ``model``, which says
            how often its condition is dropped; never, by default.
        prior: pictures of the class that must not be forgotten (DreamBooth).
        masks: for inpainting networks.
        sample: sheets of samples.
        validation: the loss on pictures that are held out, and prompts to draw.
        memorised: look for copies of training pictures among the samples.
    """

    task: Literal["diffusion"]
    unet: UNetConfig | None = None
    toy: ToyUNetConfig | None = None
    model: str | None = Field(default=None, min_length=1)
    tune: TuneConfig = FullTune()
    process: ProcessConfig | None = None
    prediction: Prediction | None = None
    snr_gamma: float | None = Field(default=None, gt=0)
    offset_noise: float = Field(default=0.0, ge=0)
    codec: CodecConfig | None = None
    condition: ConditionConfig | None = None
    prior: PriorConfig | None = None
    masks: MaskConfig | None = None
    sample: SampleSettings = SampleSettings()
    validation: ValidationConfig | None = None
    memorised: MemorisedConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> DiffusionRun:
        given = [name for name in ("unet", "toy", "model") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError("exactly one of `unet`, `toy` and `model` must be given: the network to train")
        if self.model is not None:
            self._check_beside_model()
        else:
            self._check_alone()
        return self

    def _check_beside_model(self) -> None:
        for name in ("process", "codec"):
            if getattr(self, name) is not None:
                raise UserError(f"{name} comes from `model`, whose network knows no other: leave it out")
        if self.condition is not None and self.condition.kind != "model":
            raise UserError("what conditions the network comes from `model`: condition.kind should be `model`")
        if self.loading.live:
            raise UserError(
                "loading.live is for drawing: in training, LoRAs are merged into the weights they start from"
            )

    def _check_alone(self) -> None:
        if self.toy is not None and self.train.gradient_checkpointing:
            name = "train.gradient_checkpointing"
            raise IdleError(name, f"{name} does nothing for a toy network")
        if self.condition is not None and self.condition.kind == "model":
            raise UserError("condition.kind `model` is for runs that start from one: say none, label or text")
        for name in ("loading", "tune", "prior", "masks"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(f"{name} is for runs that start from a finished `model`, and this one starts from none")


class VAELoss(Settings):
    """What the autoencoder is trained on (Rombach et al. 2022, appendix G).

    Attributes:
        reconstruction: ``l1`` or ``l2``.
        kl: weight of the KL divergence.
        perceptual: weight of the distance in the features of the network at ``perceptual_path``; 0 is off.
        perceptual_path: a classifier written by ``scripts/train_judge.py``.
        adversarial: weight of the PatchGAN; 0 is off.
        adversarial_start: first step at which it counts.
        discriminator_layers, discriminator_channels: its shape.
        learned_logvar: learn the observation variance of the reconstruction.
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    kl: float = Field(default=1e-6, ge=0)
    perceptual: float = Field(default=0.0, ge=0)
    perceptual_path: Path | None = None
    adversarial: float = Field(default=0.5, ge=0)
    adversarial_start: int = Field(default=50_001, ge=0)
    discriminator_layers: int = Field(default=3, ge=1)
    discriminator_channels: int = Field(default=64, ge=1)
    learned_logvar: bool = True

    @model_validator(mode="after")
    def _check(self) -> VAELoss:
        if (self.perceptual > 0) != (self.perceptual_path is not None):
            raise UserError("perceptual and perceptual_path go together: a weight above 0 and the network's file")
        return self


class VAERun(RunSettings):
    """An autoencoder.

    Attributes:
        vae: its shape.
        loss: what it is trained on.
        scale_from: pictures over which the latents' deviation is measured, at each checkpoint; they stay in memory.
    """

    task: Literal["vae"]
    vae: VAEConfig
    loss: VAELoss = VAELoss()
    scale_from: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _check(self) -> VAERun:
        if self.captions != CaptionConfig():
            raise IdleError("captions", "captions does nothing for an autoencoder, which reads none: leave it out")
        if self.train.compile and self.loss.adversarial > 0:
            # Compiled graphs give their activations away on the first of the two backward passes.
            raise UserError(
                "train.compile and loss.adversarial do not go together: the adversary's adaptive weight takes a "
                "second gradient through the decoder, which a compiled one cannot give. Set one of them to 0 or false"
            )
        return self
