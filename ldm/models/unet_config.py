"""The shape of a U-Net, from and to the ``config.json`` of diffusers' ``UNet2DConditionModel``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ldm.errors import UserError
from ldm.models.diffusers_config import refuse_unsupported, uniform
from ldm.schema import Settings

NORM_EPS = 1e-5
SIZES = 6  # original height and width, top and left of the crop, target height and width

# What UNet2DConditionModel can be told and this U-Net cannot: the one value that means "as here".
_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "norm_eps": NORM_EPS,
    "num_attention_heads": None,  # diffusers refuses it too: attention_head_dim has the head count
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
# Softmax is computed in float32 by every attention backend here, which is what upcast_attention is for.
_HINTS = ("upcast_attention",)
_SAME_NAME = (
    "in_channels",
    "out_channels",
    "norm_num_groups",
    "use_linear_projection",
    "flip_sin_to_cos",
    "freq_shift",
    "time_cond_proj_dim",
)
_DOWN = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
_UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
_MID = {True: "UNetMidBlock2DCrossAttn", False: "UNetMidBlock2D"}
# The defaults of UNet2DConditionModel, for keys that a file leaves out.
_DIFFUSERS_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": (_DOWN[True], _DOWN[True], _DOWN[True], _DOWN[False]),
    "mid_block_type": _MID[True],
    "up_block_types": (_UP[False], _UP[True], _UP[True], _UP[True]),
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "transformer_layers_per_block": 1,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}


class UNetConfig(Settings):
    """The shape of a U-Net; the defaults are Stable Diffusion 1.x. Per-level tuples go from fine to coarse.

    Attributes:
        in_channels: channels of the input.
        out_channels: channels of the output.
        sample_size: height and width it is meant for, in its own pixels; any size runs.
        block_out_channels: width of each level.
        layers_per_block: residual blocks per level on the way down; one more on the way up.
        attention: which levels have transformer blocks.
        mid_attention: whether the middle has them.
        num_attention_heads: number of heads, for all levels or for each. (A ``config.json`` of diffusers has
            this number under the name ``attention_head_dim``.)
        transformer_layers_per_block: depth of each transformer, 0 in some ControlNets, for all levels or for each; the
            middle is as deep as the last level.
        cross_attention_dim: width of the context; ``None``: transformer blocks attend to the image alone.
        use_linear_projection: see ``SpatialTransformer``.
        norm_num_groups: groups of every group norm.
        flip_sin_to_cos: see ``timestep_embedding``.
        freq_shift: see ``timestep_embedding``.
        time_cond_proj_dim: width of the waves of the guidance scale, in networks that were distilled to follow
            it (LCM); ``None``: it reads none.
        pooled_dim: width of the prompt's one vector, which SDXL reads beside the time; ``None``: it reads none.
        size_embed_dim: width of the waves of each of SDXL's six sizes; goes with ``pooled_dim``.
    """

    in_channels: PositiveInt = 4
    out_channels: PositiveInt = 4
    sample_size: PositiveInt = 64
    block_out_channels: tuple[PositiveInt, ...] = Field((320, 640, 1280, 1280), min_length=1)
    layers_per_block: PositiveInt = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    mid_attention: bool = True
    num_attention_heads: PositiveInt | tuple[PositiveInt, ...] = 8
    transformer_layers_per_block: NonNegativeInt | tuple[NonNegativeInt, ...] = 1
    cross_attention_dim: PositiveInt | None = 768
    use_linear_projection: bool = False
    norm_num_groups: PositiveInt = 32
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    time_cond_proj_dim: PositiveInt | None = None
    pooled_dim: PositiveInt | None = None
    size_embed_dim: PositiveInt = 256

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        levels = len(self.block_out_channels)
        for key in ("attention", "num_attention_heads", "transformer_layers_per_block"):
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != levels:
                raise UserError(
                    f"{key} = {value} has {len(value)} entries, but block_out_channels = "
                    f"{self.block_out_channels} makes {levels} levels: one entry for each"
                )
        for level, channels in enumerate(self.block_out_channels):
            if channels % self.norm_num_groups:
                raise UserError(
                    f"block_out_channels[{level}] = {channels} is not divisible by norm_num_groups = "
                    f"{self.norm_num_groups}"
                )
            attends = self.attention[level] or (self.mid_attention and level == levels - 1)
            if attends and channels % self.heads(level):
                raise UserError(
                    f"block_out_channels[{level}] = {channels} is not divisible by its num_attention_heads = "
                    f"{self.heads(level)}"
                )
        if self.block_out_channels[0] % 2:
            raise UserError(
                f"block_out_channels[0] = {self.block_out_channels[0]} must be even (sines and cosines of t)"
            )
        for key in ("time_cond_proj_dim", "size_embed_dim"):
            if (getattr(self, key) or 0) % 2:
                raise UserError(f"{key} = {getattr(self, key)} must be even (sines and cosines)")
        return self

    @property
    def reads_context(self) -> bool:
        """Whether any layer attends to a context."""
        return self.cross_attention_dim is not None and (any(self.attention) or self.mid_attention)

    def heads(self, level: int) -> int:
        """Number of attention heads at a level (the middle has those of the last)."""
        return _at(self.num_attention_heads, level)

    def depth(self, level: int) -> int:
        """Number of transformer blocks after each residual block of a level."""
        return _at(self.transformer_layers_per_block, level)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Translate the ``config.json`` of a ``UNet2DConditionModel``.

        Raises:
            UserError: a key has a value that this U-Net cannot honour, or is unknown.
        """
        refuse_unsupported(config, "U-Net's", {*_SAME_NAME, *_DIFFUSERS_DEFAULTS}, _FIXED, _HINTS)
        found = {**_DIFFUSERS_DEFAULTS, **config}
        sample_size = uniform(found["sample_size"], "sample_size", "U-Net's")
        return cls(
            **{key: found[key] for key in _SAME_NAME if key in found},
            sample_size=cls.model_fields["sample_size"].default if sample_size is None else sample_size,
            block_out_channels=tuple(found["block_out_channels"]),
            layers_per_block=uniform(found["layers_per_block"], "layers_per_block", "U-Net's"),
            attention=_attention_levels(found["down_block_types"], found["up_block_types"]),
            mid_attention=_key_of(_MID, found["mid_block_type"], "mid_block_type"),
            num_attention_heads=_per_level(found["attention_head_dim"]),
            transformer_layers_per_block=_per_level(found["transformer_layers_per_block"]),
            cross_attention_dim=uniform(found["cross_attention_dim"], "cross_attention_dim", "U-Net's"),
            **_added(found),
        )

    def to_diffusers(self) -> dict[str, Any]:
        """Return the ``config.json`` of a ``UNet2DConditionModel`` of this shape.

        diffusers has no transformer blocks without cross-attention: with ``cross_attention_dim`` None, only
        ``from_diffusers`` can read it back.
        """
        return {
            "_class_name": "UNet2DConditionModel",
            **{key: getattr(self, key) for key in _SAME_NAME},
            "sample_size": self.sample_size,
            "block_out_channels": list(self.block_out_channels),
            "layers_per_block": self.layers_per_block,
            "down_block_types": [_DOWN[attends] for attends in self.attention],
            "mid_block_type": _MID[self.mid_attention],
            "up_block_types": [_UP[attends] for attends in reversed(self.attention)],
            "attention_head_dim": _per_level(self.num_attention_heads, list),
            "transformer_layers_per_block": _per_level(self.transformer_layers_per_block, list),
            "cross_attention_dim": self.cross_attention_dim,
            **self._added(),
        }

    def _added(self) -> dict[str, Any]:
        if self.pooled_dim is None:
            return {}
        return {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": self.size_embed_dim,
            "projection_class_embeddings_input_dim": self.pooled_dim + SIZES * self.size_embed_dim,
        }


def _at(value: int | tuple[int, ...], level: int) -> int:
    return value if isinstance(value, int) else value[level]


def _per_level(value: Any, kind: type = tuple) -> Any:
    return kind(value) if isinstance(value, (list, tuple)) else value


def _key_of(table: dict[bool, str], name: str, key: str) -> bool:
    for attends, known in table.items():
        if name == known:
            return attends
    raise UserError(f"the U-Net's config.json has {key} = {name!r}; supported: {', '.join(table.values())}")


def _attention_levels(down: Sequence[str], up: Sequence[str]) -> tuple[bool, ...]:
    levels = tuple(_key_of(_DOWN, name, f"down_block_types[{i}]") for i, name in enumerate(down))
    upward = tuple(_key_of(_UP, name, f"up_block_types[{i}]") for i, name in enumerate(up))
    if upward != levels[::-1]:
        raise UserError(
            f"the U-Net's config.json has up_block_types = {up}, not the mirror of down_block_types = {down}"
        )
    return levels


def _added(found: Mapping[str, Any]) -> dict[str, Any]:
    """What SDXL reads beside the time: diffusers' file has the width of all of it together."""
    kind = found["addition_embed_type"]
    width, total = found["addition_time_embed_dim"], found["projection_class_embeddings_input_dim"]
    if kind is None and total is None:
        return {}
    if kind != "text_time":
        raise UserError(f"the U-Net's config.json has addition_embed_type = {kind!r}; supported: None, 'text_time'")
    if not isinstance(width, int) or not isinstance(total, int) or total <= SIZES * width:
        raise UserError(
            f"the U-Net's config.json has projection_class_embeddings_input_dim = {total!r}: with text_time, that is "
            f"{SIZES} times addition_time_embed_dim = {width!r} and the width of the pooled prompt"
        )
    return {"pooled_dim": total - SIZES * width, "size_embed_dim": width}
