"""The U-Net of Stable Diffusion (Rombach et al. 2022): one network for latents and for pixels.

The image goes down a ladder of levels, each at half the resolution of the last, through a middle, and up
again; on the way up, every residual block reads beside its input the output of its twin on the way down.
Each level may attend, after every residual block, to itself and to a context.

    conv_in -> down_blocks -> mid_block -> up_blocks -> conv_norm_out -> SiLU -> conv_out

Submodules are named as in diffusers' ``UNet2DConditionModel``, so state dicts pass both ways unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.layers import (
    Downsample,
    ResnetBlock,
    SpatialTransformer,
    Upsample,
    run_block,
    timestep_embedding,
)
from ldm.models.unet_config import NORM_EPS, SIZES, UNetConfig

__all__ = ["Descent", "UNet", "UNetConfig"]


class TimeEmbedding(nn.Module):
    """Two linear layers with a SiLU between, from sines and cosines to what the residual blocks read."""

    def __init__(self, in_channels: int, out_channels: int, guidance_channels: int | None = None) -> None:
        """``guidance_channels``: width of the waves of the guidance scale, which are added to those of the time."""
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.cond_proj = None if guidance_channels is None else nn.Linear(guidance_channels, in_channels, bias=False)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Map (B, in_channels), and (B, guidance_channels) where there are, to (B, out_channels)."""
        if self.cond_proj is not None and guidance is not None:
            x = x + self.cond_proj(guidance)
        return self.linear_2(F.silu(self.linear_1(x)))


def _transformer(config: UNetConfig, level: int) -> SpatialTransformer:
    return SpatialTransformer(
        config.block_out_channels[level],
        config.heads(level),
        config.depth(level),
        config.cross_attention_dim,
        config.norm_num_groups,
        config.use_linear_projection,
    )


class Level(nn.Module):
    """Residual blocks of one resolution, each with its transformer if the level attends, then a resampling.

    Args:
        config: of the whole U-Net.
        level: which level this is; its width is ``config.block_out_channels[level]``.
        in_channels: input width of each residual block: on the way up, what it concatenates included.
        resample: the last step, if any.
    """

    def __init__(
        self,
        config: UNetConfig,
        level: int,
        in_channels: Sequence[int],
        resample: Downsample | Upsample | None,
    ) -> None:
        super().__init__()
        channels = config.block_out_channels[level]
        embedding_channels = 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList(
            ResnetBlock(width, channels, config.norm_num_groups, NORM_EPS, embedding_channels) for width in in_channels
        )
        attends = config.attention[level]
        self.attentions = nn.ModuleList(_transformer(config, level) for _ in in_channels if attends)
        self.downsamplers = nn.ModuleList([resample] if isinstance(resample, Downsample) else [])
        self.upsamplers = nn.ModuleList([resample] if isinstance(resample, Upsample) else [])

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        context: Tensor | None,
        skips: Sequence[Tensor] = (),
        size: tuple[int, int] | None = None,
    ) -> list[Tensor]:
        """Run the level.

        Args:
            x: (B, C_in, H, W).
            embedding: of the time, (B, E), already through its SiLU.
            context: (B, L, D) or ``None``.
            skips: on the way up, one (B, C_i, H, W) per residual block; the last is read first.
            size: on the way up, height and width to enlarge to.

        Returns:
            The output of every step, in order: on the way down, the skips; the last is the level's output.
        """
        outputs = []
        for i, resnet in enumerate(self.resnets):
            if skips:
                x = torch.cat([x, skips[-1 - i]], dim=1)  # (B, C_in + C_skip, H, W)
            x = resnet(x, embedding)  # (B, C, H, W)
            if self.attentions:
                x = self.attentions[i](x, context)
            outputs.append(x)
        for downsample in self.downsamplers:
            outputs.append(downsample(x))  # (B, C, H / 2, W / 2)
        for upsample in self.upsamplers:
            outputs.append(upsample(x, size))  # (B, C, 2 H, 2 W)
        return outputs


class Middle(nn.Module):
    """Residual block, transformer, residual block; only the first where the middle does not attend."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, embedding_channels = config.block_out_channels[-1], 4 * config.block_out_channels[0]
        level = len(config.block_out_channels) - 1
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, config.norm_num_groups, NORM_EPS, embedding_channels)
            for _ in range(2 if config.mid_attention else 1)
        )
        self.attentions = nn.ModuleList([_transformer(config, level)] if config.mid_attention else [])

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        x = self.resnets[0](x, embedding)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, context), embedding)
        return x


class Descent(nn.Module):
    """The way down and the middle of a U-Net, with what its blocks read; a ControlNet is a copy of it.

    Attributes:
        config: its shape.
        skip_channels: width of everything that the way up reads, in the order of the way down.
        gradient_checkpointing: when true and training, keep only the inputs of each block and compute the
            rest again in the backward pass: less memory for about a third more work.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0], config.time_cond_proj_dim)
        self.add_embedding = None
        if config.pooled_dim is not None:
            self.add_embedding = TimeEmbedding(config.pooled_dim + SIZES * config.size_embed_dim, 4 * widths[0])
        self.down_blocks = nn.ModuleList()
        self.skip_channels = [widths[0]]
        for level, width in enumerate(widths):
            resample = Downsample(width) if level < len(widths) - 1 else None
            inputs = [self.skip_channels[-1]] + [width] * (config.layers_per_block - 1)
            self.down_blocks.append(Level(config, level, inputs, resample))
            self.skip_channels += [width] * (config.layers_per_block + (resample is not None))
        self.mid_block = Middle(config)

    @property
    def recompute(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.gradient_checkpointing and self.training

    def descend(self, x: Tensor, embedding: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """From the first convolution's output (B, C0, H, W) to that of the middle, and the skips on the way."""
        skips = [x]
        for level in self.down_blocks:
            skips += run_block(level, x, embedding, context, recompute=self.recompute)
            x = skips[-1]  # (B, C_i, H / 2^i, W / 2^i)
        return run_block(self.mid_block, x, embedding, context, recompute=self.recompute), skips

    def embed(
        self,
        t: Tensor,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Map timesteps (B,), and what goes with them, to what the residual blocks read.

        Returns:
            (B, 4 C0), already through its SiLU.
        """
        config, dtype = self.config, self.time_embedding.linear_1.weight.dtype
        order = (config.flip_sin_to_cos, config.freq_shift)
        waves = timestep_embedding(t, config.block_out_channels[0], *order)
        scale = None
        if guidance is not None and config.time_cond_proj_dim is not None:
            # sines first, whatever the time's order (Luo et al. 2023, section 4.1)
            scale = timestep_embedding(1000 * guidance, config.time_cond_proj_dim, False, 1).to(dtype)
        embedding = self.time_embedding(waves.to(dtype), scale)
        if self.add_embedding is not None and pooled is not None and sizes is not None:
            waves = timestep_embedding(
                sizes.flatten(), config.size_embed_dim, config.flip_sin_to_cos, config.freq_shift
            )
            waves = waves.unflatten(0, sizes.shape).flatten(1)  # (B, 6 size_embed_dim)
            embedding = embedding + self.add_embedding(torch.cat([pooled.to(dtype), waves.to(dtype)], dim=1))
        return F.silu(embedding)

    def check_inputs(
        self, context: Tensor | None, pooled: Tensor | None, sizes: Tensor | None, guidance: Tensor | None
    ) -> None:
        """Refuse inputs that are missing, and those that nothing would read.

        Raises:
            UserError: there is one.
        """
        config = self.config
        if context is None and config.reads_context:
            raise UserError(
                f"this U-Net has cross-attention: it needs a context of shape (B, L, {config.cross_attention_dim})"
            )
        if context is not None and not config.reads_context:
            raise UserError(
                "this U-Net has no cross-attention (cross_attention_dim is None, or no level attends): no "
                "layer would read the context"
            )
        for name, value, key in (
            ("pooled", pooled, "pooled_dim"),
            ("sizes", sizes, "pooled_dim"),
            ("guidance", guidance, "time_cond_proj_dim"),
        ):
            if (value is None) != (getattr(config, key) is None):
                verb = "needs" if value is None else "does not read"
                raise UserError(f"this U-Net {verb} the input {name} ({key} is {getattr(config, key)})")


class UNet(Descent):
    """The network eps(x_t, t, context), or of x0 or v: what its output means is not its concern."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths, skips = config.block_out_channels, list(self.skip_channels)
        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            inputs = [x + skips.pop() for x in [below] + [width] * config.layers_per_block]
            self.up_blocks.append(Level(config, level, inputs, Upsample(width) if level > 0 else None))
            below = width
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Apply the network.

        Args:
            x: (B, in_channels, H, W), any H and W.
            t: timesteps (B,), integer or floating, on the scale 0..1000.
            context: (B, L, cross_attention_dim); ``None`` exactly where the U-Net has no cross-attention.
            pooled: (B, pooled_dim) and
            sizes: (B, 6), where the configuration has ``pooled_dim``.
            guidance: guidance scale minus 1, (B,), where it has ``time_cond_proj_dim``.
            control: what a ControlNet adds to each skip and, last, to the middle.

        Returns:
            (B, out_channels, H, W).

        Raises:
            UserError: an input is missing, or there is nothing to read it.
        """
        self.check_inputs(context, pooled, sizes, guidance)
        embedding = self.embed(t, pooled, sizes, guidance)  # (B, 4 C0)
        x, skips = self.descend(self.conv_in(x), embedding, context)
        if control is not None:
            skips = [skip + more for skip, more in zip(skips, control[:-1], strict=True)]
            x = x + control[-1]
        for level in self.up_blocks:
            count = len(level.resnets)  # pyright: ignore[reportArgumentType]
            skips, taken = skips[:-count], skips[-count:]
            size = skips[-1].shape[-2:] if skips else None  # that of the twin, also where it was odd
            x = run_block(level, x, embedding, context, taken, size, recompute=self.recompute)[-1]
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # (B, out_channels, H, W)
