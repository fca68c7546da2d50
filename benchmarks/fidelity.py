"""Our parts and pictures against those of diffusers and transformers: every family at full size, in float32.

    python benchmarks/fidelity.py --families sd1 sdxl --parts unet pictures --output found.json

The weights are random, and the same on both sides, as are the inputs. Of a part, the table has the largest difference
over the largest number of the output; of a picture, the largest difference of a colour, in 1/255. A row is printed as
soon as it is there. ``--tiny`` takes small parts of the same kinds, to try the script.

Whole pictures begin from the same noise. diffusers' Euler multiplies it by sigma and ours by sqrt(sigma^2 + 1), the
deviation of a noised picture, so theirs is handed a larger one. SDXL takes 11.2 GiB: both sides encode the prompts
first and give up their text encoders before the U-Net is there; and the ControlNet of a whole picture is a copy of its
U-Net's way down, on the same tensors, but for what reads the hint and what writes. (That of ``controlnet`` is not.)
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _full_size import (
    CPU,
    KINDS,
    NEGATIVE,
    PROMPT,
    SAMPLERS,
    Asked,
    Kind,
    encoded,
    network_inputs,
    text_twins,
    their_pipeline,
    their_scheduler,
    twins,
)
from _timing import machine
from torch import Tensor

from ldm.accel import tune_allocator
from ldm.codec import VAECodec
from ldm.diffusion.control import Control
from ldm.drawing import Inputs
from ldm.errors import UserError, need
from ldm.pipeline import Pipeline
from ldm.publishing import disk_trouble, write_whole
from ldm.text_conditioner import TextConditioner
from ldm.weights.model import assemble

LIMITS = {"of the largest": 1e-4, "1/255": 2.0}  # by the unit of the difference
GUIDANCE, CONTROL_SCALE, SEED = 5.0, 0.8, 2**40
SIZES = {"original_size": (1024, 768), "crop_top_left": (0, 64)}  # what SDXL is told


@dataclass(frozen=True)
class Pair:
    """An output, or several, on both sides."""

    what: str
    ours: list[Tensor]
    theirs: list[Tensor]
    unit: str = "of the largest"


@dataclass(frozen=True)
class Row:
    """What was found; ``spread`` is the standard deviation of the output, ``seconds`` since the row before."""

    family: str
    what: str
    difference: float
    unit: str
    limit: float
    ok: bool
    spread: float
    seconds: float


def unet(kind: Kind, asked: Asked) -> Iterator[Pair]:
    ours, theirs = twins(kind.unet_config(), asked.seed)
    x, t, context, told = network_inputs(kind, asked, ours.config)
    yield Pair("U-Net", [ours(x, t, **context.inputs())], [theirs(x, t, **told)[0]])


def controlnet(kind: Kind, asked: Asked) -> Iterator[Pair]:
    if not kind.controlnet:
        return
    ours, theirs = twins(kind.controlnet_config(), asked.seed)
    x, t, context, told = network_inputs(kind, asked, ours.config)
    hint = torch.cat([asked.picture(1), asked.picture(2)])
    found = ours(x, t, ours.read(hint), **context.inputs())
    down, middle = theirs(x, t, controlnet_cond=hint, **told)
    yield Pair(f"ControlNet, each of {len(found)} outputs", found, [*down, middle])


def vae(kind: Kind, asked: Asked) -> Iterator[Pair]:
    ours, theirs = twins(kind.vae_config(), asked.seed)
    images, latents = asked.picture() * 2 - 1, asked.noise(1, 4, asked.side // 8, asked.side // 8)
    yield Pair("VAE, encoding", [ours.encode(images)], [theirs.encode(images).latent_dist.parameters])
    yield Pair("VAE, decoding", [ours.decode(latents)], [theirs.decode(latents).sample])


def text(kind: Kind, asked: Asked) -> Iterator[Pair]:
    ours, theirs = text_twins(kind, asked.seed)
    found, expected = ours.encode([PROMPT, NEGATIVE, "."]), encoded(theirs)
    assert found.tokens is not None
    widths = [tower.encoder.config.hidden_size for tower in ours.towers]
    halves = zip(found.tokens.split(widths, -1), expected[0].split(widths, -1), strict=True)
    for name, (mine, other) in zip(kind.family.text_encoders, halves, strict=True):
        yield Pair(name, [mine], [other])
    if found.pooled is not None:
        yield Pair("text_encoder_2, pooled", [found.pooled], [expected[1]])
    if kind.family.context == 1024:  # its folders have 23 of OpenCLIP-H's 24 layers; here all, and the last is skipped
        config = kind.text_configs()["text_encoder"]
        layers = config["num_hidden_layers"] + 1
        given = ours.towers[0].encoder.state_dict()
        theirs.text_encoder = twins({**config, "num_hidden_layers": layers}, asked.seed + 1, given)[1]
        vars(theirs.text_encoder)["text_model"] = theirs.text_encoder  # where transformers 4 had the final norm
        yield Pair(f"text_encoder, layer {layers - 1} of {layers}", [found.tokens], [encoded(theirs, clip_skip=1)[0]])


class Both:
    """The pipelines of a family, ours and theirs, on the same weights."""

    def __init__(self, kind: Kind, asked: Asked) -> None:
        self.kind, self.asked = kind, asked
        self.guided = not (kind.turbo or kind.follows_scale)
        conditioner, reader = text_twins(kind, asked.seed)
        self.embeds = self._encode(conditioner, reader)
        del reader
        self.net, their_net = twins(kind.unet_config(), asked.seed + 2)
        vae, their_vae = twins(kind.vae_config(), asked.seed + 3)
        named = Path(kind.shape)
        model = assemble(self.net, VAECodec(vae), conditioner, kind.scheduler_config(), named, named)
        self.ours = Pipeline(model, CPU, torch.float32)
        self.parts = {"unet": their_net, "vae": their_vae}

    def _encode(self, conditioner: TextConditioner, reader: Any) -> dict[str, Tensor]:
        """The prompts, as theirs takes them; our conditioner remembers them, and needs its encoders no more."""
        conditioner.encode([PROMPT, NEGATIVE], weighted=True)
        for tower in conditioner.towers:
            tower.encoder.to("meta")
        told = {"device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": self.guided}
        found = reader.encode_prompt(PROMPT, negative_prompt=NEGATIVE if self.guided else None, **told)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return {name: value for name, value in zip(names, found, strict=False) if value is not None}

    def draw_ours(self, sampler: str, controls: tuple[Control, ...] = ()) -> Tensor:
        kind, asked = self.kind, self.asked
        options: dict[str, Any] = {"guidance": 1.0 if kind.turbo else GUIDANCE, "steps": asked.steps}
        options |= {"negative": NEGATIVE} if self.guided else {}
        options |= SIZES if kind.is_xl else {}
        options |= {"height": asked.side, "width": asked.side, "sampler": kind.sampler(sampler)}
        begun = (asked.picture() * 2 - 1, asked.mask()) if kind.inpaints else (None, None)
        found = self.ours.generate([PROMPT], [SEED], inputs=Inputs(*begun, controls), **options) / 2 + 0.5
        return self._drawn(found)

    def _drawn(self, found: Tensor) -> Tensor:
        """A picture (1, 3, H, W), or the part of it that was not given: we put back the rest, and they do not."""
        return found[self.asked.mask().expand_as(found) == 1] if self.kind.inpaints else found

    def draw_theirs(self, sampler: str, **control: Any) -> Tensor:
        kind, asked = self.kind, self.asked
        net = {"controlnet": control.pop("net")} if control else {}
        pipe = their_pipeline(kind, **self.parts, **net)
        pipe.scheduler = their_scheduler(kind, sampler)
        state = torch.Generator().manual_seed(SEED)
        noise = torch.randn(1, 4, asked.side // 8, asked.side // 8, generator=state)
        if sampler.startswith("euler"):
            sigma = float(pipe.scheduler.init_noise_sigma)
            noise *= math.sqrt(sigma**2 + 1) / sigma
        options = {**control, "guidance_scale": 0.0 if kind.turbo else GUIDANCE, "latents": noise}
        options |= {"height": asked.side, "width": asked.side, "num_inference_steps": asked.steps}
        if kind.is_xl:
            options |= {"original_size": SIZES["original_size"], "crops_coords_top_left": SIZES["crop_top_left"]}
        if kind.inpaints:
            options |= self._inpainting()
        return self._drawn(pipe(**self.embeds, **options, generator=state, output_type="pt").images)

    def _inpainting(self) -> dict[str, Any]:
        """The picture and the masked one as means of latents, which are drawn at random otherwise."""
        asked, vae = self.asked, self.parts["vae"]
        picture = asked.picture() * 2 - 1
        pictures = {"image": picture, "masked_image_latents": picture * (asked.mask() < 0.5)}
        latents = {name: vae.encode(x).latent_dist.mode() * vae.config.scaling_factor for name, x in pictures.items()}
        return {**latents, "mask_image": asked.mask(), "strength": 1.0}


def pictures(kind: Kind, asked: Asked) -> Iterator[Pair]:
    both, samplers = Both(kind, asked), asked.samplers or kind.samplers
    for sampler in samplers:
        yield Pair(f"picture, {kind.sampler(sampler)}", [both.draw_ours(sampler)], [both.draw_theirs(sampler)], "1/255")
    if kind.controlnet:
        net, their_net = twins(kind.controlnet_config(), asked.seed + 4, both.net.state_dict())
        sampler, hint = samplers[0], asked.picture(1)
        mine = both.draw_ours(sampler, (Control(net, hint, CONTROL_SCALE),))
        other = both.draw_theirs(sampler, net=their_net, image=hint, controlnet_conditioning_scale=CONTROL_SCALE)
        yield Pair(f"picture, {sampler}, ControlNet", [mine], [other], "1/255")


PARTS: dict[str, Callable[[Kind, Asked], Iterator[Pair]]] = {
    "unet": unet,
    "vae": vae,
    "text": text,
    "controlnet": controlnet,
    "pictures": pictures,
}


def measure(family: str, pair: Pair, seconds: float = 0.0) -> Row:
    """How far the two sides are apart.

    Raises:
        UserError: the outputs are such that this would say nothing.
    """
    flat = torch.cat([x.flatten() for x in pair.theirs])
    spread, largest = float(flat.std()), float(flat.abs().max())
    place = f"{family}, {pair.what}"
    if not all(bool(x.isfinite().all()) for x in (*pair.ours, *pair.theirs)):
        raise UserError(f"{place}: the output is not finite, and cannot be compared; other weights are needed")
    if spread <= 0.03 * largest:
        raise UserError(f"{place}: the output is nearly constant ({spread:.2g} about {float(flat.mean()):.2g})")
    if pair.unit == "1/255" and float(((flat <= 0) | (flat >= 1)).float().mean()) > 0.25:
        raise UserError(f"{place}: more than a quarter of the picture is saturated")
    scale = [1 / 255 if pair.unit == "1/255" else float(x.abs().max()) for x in pair.theirs]
    apart = zip(pair.ours, pair.theirs, scale, strict=True)
    difference = max(float((a - b).abs().max()) / by for a, b, by in apart)
    limit = LIMITS[pair.unit]
    return Row(family, pair.what, difference, pair.unit, limit, difference <= limit, spread, seconds)


def compare(families: list[str], parts: list[str], asked: Asked, tiny: bool) -> Iterator[Row]:
    """All rows, as they come."""
    for family in families:
        for part in parts:
            start = time.perf_counter()
            seeded = replace(asked, seed=100 * list(KINDS).index(family))
            for pair in PARTS[part](replace(KINDS[family], tiny=tiny), seeded):
                now = time.perf_counter()
                yield measure(family, pair, now - start)
                start = now
            gc.collect()


def show(row: Row) -> None:
    cells = [row.family, row.what, f"{row.difference:.2g}", row.unit, f"{row.limit:g}", "yes" if row.ok else "NO"]
    print(f"| {' | '.join([*cells, f'{row.spread:.2g}', f'{row.seconds:.0f}'])} |", flush=True)


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=[], help="those of each family by default")
    parser.add_argument("--size", type=int, default=128, help="height and width of the pictures, a multiple of 64")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="small parts of the same kinds, to try the script")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON")
    options = parser.parse_args(given)
    if options.size < 64 or options.size % 64:
        parser.error(f"--size {options.size} is not a multiple of 64")
    if not 2 <= options.steps <= 1000:
        parser.error(f"--steps {options.steps} is not from 2 to 1000")
    return options


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    asked = Asked(options.size, options.steps, tuple(options.samplers))
    tune_allocator()  # as ``ldm.load`` does; for both sides
    try:
        peers = {name: need(name, "peers").__version__ for name in ("diffusers", "transformers")}
        facts = {**machine(CPU), **peers, "size": asked.side, "steps": asked.steps, "tiny": options.tiny}
        print(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
        print("| family | what | difference | unit | limit | ok | std | s |\n|---|---|---|---|---|---|---|---|")
        rows = []
        with torch.inference_mode():
            for row in compare(options.families, options.parts, asked, options.tiny):
                show(row)
                rows.append(row)
        if options.output is not None:
            found = json.dumps({"facts": facts, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
            with disk_trouble(str(options.output)):
                write_whole(options.output, lambda path: path.write_text(found))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
