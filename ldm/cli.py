"""The command line: ``ldm generate``, ``ldm train``, ``ldm info``.

Only typer is imported here; what a command needs, it imports when it runs, so that ``ldm --help`` is instant.
Flags have no ranges of their own: the library checks them, with one message for the command line and for Python.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Latent text-to-image diffusion: draw, train, look inside.",
)

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="what to draw; for label models, a label")]
MorePrompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="the same, as an option")]
Output = Annotated[Path, typer.Option("--output", "-o", help="picture to write; several get numbers")]
ModelPlace = Annotated[str | None, typer.Option("--model", "-m", help="model folder or run; default: the one in ldm")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", "-n", help="what to stay away from")]
Count = Annotated[int, typer.Option("--count", "--batch-count", "-c", help="pictures per prompt")]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", help="pictures drawn together")]
Seed = Annotated[int | None, typer.Option("--seed", "-s", help="of the first picture; random when left out")]
Sampler = Annotated[str | None, typer.Option("--sampler", help="ddim, euler_a, 'DPM++ 2M Karras', ...")]
Spacing = Annotated[str | None, typer.Option("--scheduler", help="of times: leading, linspace, trailing, karras")]
Steps = Annotated[int | None, typer.Option("--steps", help="moves of the sampler")]
Eta = Annotated[float | None, typer.Option("--eta", help="fresh noise of ddim: 0 (none) to 1 (as ddpm)")]
Guidance = Annotated[float | None, typer.Option("--cfg-scale", "--guidance-scale", help="1 is no guidance")]
Rescale = Annotated[float, typer.Option("--guidance-rescale", help="0 (off) to 1")]
Interval = Annotated[tuple[float, float], typer.Option("--guidance-interval", help="guide where t/T lies between")]
Width = Annotated[int | None, typer.Option("--width", "-W", help="pixels")]
Height = Annotated[int | None, typer.Option("--height", "-H", help="pixels")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="fp32, bf16 or fp16")]
Attention = Annotated[str, typer.Option("--attention", help="sdpa, xformers or math")]
Compile = Annotated[bool, typer.Option("--compile", help="compile the U-Net: pays after dozens of pictures")]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file, such as configs/mnist.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="such as train.steps=100")]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run from its newest checkpoint")]
Described = Annotated[str | None, typer.Argument(metavar="MODEL", help="model folder or run; default: the one in ldm")]


@app.command()
def generate(
    prompts: Prompts = None,
    prompt: MorePrompts = None,
    output: Output = Path("out.png"),
    model: ModelPlace = None,
    negative: Negative = None,
    count: Count = 1,
    batch_size: BatchSize = 16,
    seed: Seed = None,
    sampler: Sampler = None,
    scheduler: Spacing = None,
    steps: Steps = None,
    eta: Eta = None,
    guidance: Guidance = None,
    rescale: Rescale = 0.0,
    interval: Interval = (0.0, 1.0),
    width: Width = None,
    height: Height = None,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = "sdpa",
    compiled: Compile = False,
) -> None:
    """Draw pictures from prompts, or from labels. An empty prompt draws anything."""
    from ldm.commands import generate_pictures

    options = {
        "sampler": sampler,
        "steps": steps,
        "eta": eta,
        "spacing": scheduler,
        "guidance": guidance,
        "guidance_rescale": rescale,
        "guidance_interval": interval,
        "negative": negative,
        "height": height,
        "width": width,
        "batch_size": batch_size,
    }
    loading = {"device": device, "dtype": dtype, "attention": attention, "compile": compiled}
    asked = [*(prompts or []), *(prompt or [])] or [""]
    generate_pictures(asked, output, model, count, seed, loading, options)


@app.command()
def train(config: Config, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train what a configuration describes: diffusion in pixels or latents, a VAE, or CLIP."""
    from ldm.training.run import train_file

    last = train_file(config, overrides or [], resume=resume)
    # `accelerate launch` and torchrun start several processes; one of them tells
    if os.environ.get("RANK", "0") == "0":
        print(f"trained: {last}")


@app.command()
def info(model: Described = None) -> None:
    """Say what a model is made of and where it came from."""
    from ldm.commands import describe_model

    print(describe_model(model))


def run(function: Any, *arguments: Any) -> None:
    """Call what a command or script does; a user's mistake ends in one message and exit code 2."""
    try:
        function(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """The entry point of ``ldm``."""
    run(app)


if __name__ == "__main__":
    main()
