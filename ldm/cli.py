"""The command line: ``ldm generate``, ``show``, ``replay``, ``train``, ``info``, ``convert``; see ``measure_cli`` too.

Only typer is imported here; what a command needs, it imports when it runs, so that ``ldm --help`` is instant.
Flags have no ranges of their own: the library checks them, with one message for the command line and for Python.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ldm.cli_options import (
    AllowPickle,
    Attention,
    BatchSize,
    Compile,
    Device,
    Dtype,
    Ema,
    Embeddings,
    Loras,
    OtherVae,
    PredictionName,
    Revision,
    Sampler,
    Variant,
)
from ldm.data_cli import data_app
from ldm.errors import UserError
from ldm.measure_cli import add_to

FLAG_ALIASES = {  # as people know a flag from other programs; not shown, so that --help stays short
    "cfg": "cfg-scale",
    "ckpt": "model",
    "ddim-eta": "eta",
    "ddim-steps": "steps",
    "hr-scale": "hires-scale",
    "hr-second-pass-steps": "hires-steps",
    "hr-upscaler": "hires-upscaler",
    "init": "init-image",
    "init-img": "init-image",
    "mask-image": "mask",
    "num-images-per-prompt": "count",
    "num-inference-steps": "steps",
    "sampler-name": "sampler",
    "schedule": "scheduler",
    "schedule-type": "scheduler",
    "subseed": "variation-seed",
    "subseed-strength": "variation-strength",
}


def _flag(name: str) -> str:
    """The name of a flag as it is declared; without its hyphens, and underscores are hyphens."""
    plain = name.replace("_", "-")
    return FLAG_ALIASES.get(plain, plain)


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _flag},
    help="Latent text-to-image diffusion: draw, train, look inside.",
)
app.add_typer(data_app, name="data")

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="what to draw; for label models, a label")]
MorePrompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="the same, as an option")]
FromFile = Annotated[str | None, typer.Option("--from-file", help="a prompt per line, or JSON lines; - is stdin")]
Preview = Annotated[Path | None, typer.Option("--preview", help="picture to rewrite at each step, as it comes")]
Matrix = Annotated[bool, typer.Option("--matrix", help="all combinations of 'a {red|blue} car|at night', as a sheet")]
AxisX = Annotated[list[str] | None, typer.Option("--x", metavar="SETTING=VALUES", help="columns of a table: steps=5,9")]
AxisY = Annotated[list[str] | None, typer.Option("--y", metavar="SETTING=VALUES", help="its rows: sampler=ddim,heun")]
Output = Annotated[Path, typer.Option("--output", "-o", help="picture to write; several get numbers")]
ModelPlace = Annotated[
    str | None, typer.Option("--model", "-m", help="folder, run, file, hub name or ldm:NAME; default: ldm's own")
]
Negative = Annotated[str | None, typer.Option("--negative-prompt", "-n", help="what to stay away from")]
Count = Annotated[int, typer.Option("--count", "--batch-count", "-c", help="pictures per prompt, in all")]
Seed = Annotated[int | None, typer.Option("--seed", "-s", help="of the first picture; random when left out, or -1")]
Spacing = Annotated[
    str | None, typer.Option("--scheduler", help="of times: leading, linspace, trailing, karras, beta, ...")
]
Steps = Annotated[int | None, typer.Option("--steps", help="moves of the sampler")]
Eta = Annotated[float | None, typer.Option("--eta", help="fresh noise of ddim: 0 (none) to 1 (as ddpm)")]
Guidance = Annotated[float | None, typer.Option("--cfg-scale", "--guidance-scale", help="1 is no guidance")]
Rescale = Annotated[float, typer.Option("--guidance-rescale", help="0 (off) to 1")]
Interval = Annotated[tuple[float, float], typer.Option("--guidance-interval", help="guide where t/T lies between")]
Apg = Annotated[bool, typer.Option("--apg", help="adaptive projected guidance: strong, and not oversaturated")]
Syntax = Annotated[str, typer.Option("--prompt-syntax", help="a1111: (words:1.2) are weighed; plain: they are not")]
AsWritten = Annotated[bool, typer.Option("--as-written", help="unknown words, too, in place of the nearest known ones")]
ClipSkip = Annotated[int, typer.Option("--clip-skip", help="which layer of the text encoder, from the last: 1, 2, ...")]
Variation = Annotated[
    int | None, typer.Option("--variation-seed", help="turn the start noise towards this seed's; or -1")
]
VariationBy = Annotated[float | None, typer.Option("--variation-strength", help="by this part of the way, 0 to 1")]
Init = Annotated[Path | None, typer.Option("--init-image", "-i", help="picture to begin from")]
Strength = Annotated[float | None, typer.Option("--strength", "--denoising-strength", help="part redrawn: 0.75")]
Mask = Annotated[Path | None, typer.Option("--mask", help="white where the init image is drawn anew")]
InvertMask = Annotated[bool, typer.Option("--invert-mask", help="draw where the mask is black")]
MaskBlur = Annotated[float, typer.Option("--mask-blur", help="softens the mask's border, in pixels")]
OnlyMasked = Annotated[bool, typer.Option("--only-masked", help="draw the masked region alone, at the full size")]
Padding = Annotated[int, typer.Option("--padding", help="pixels around the region that --only-masked sees")]
Outpaint = Annotated[
    tuple[int, int, int, int] | None,
    typer.Option("--outpaint", metavar="LEFT TOP RIGHT BOTTOM", help="pixels of room to add and draw in"),
]
OutpaintFill = Annotated[str, typer.Option("--outpaint-fill", help="what the room holds at first: edge or noise")]
Fit = Annotated[str, typer.Option("--fit", help="how the init image comes to size: resize, crop or fill")]
Controls = Annotated[
    list[str] | None,
    typer.Option("--control", metavar="NET=HINT[:SCALE[:START-END]]", help="a ControlNet's place, and a picture"),
]
Hires = Annotated[float, typer.Option("--hires-scale", help="draw a second time, this much larger")]
HiresUpscaler = Annotated[str, typer.Option("--hires-upscaler", help="what is enlarged: latent, or by lanczos")]
HiresStrength = Annotated[float, typer.Option("--hires-strength", help="part redrawn the second time")]
HiresSteps = Annotated[int | None, typer.Option("--hires-steps", help="of the second time; default: the same")]
Tiled = Annotated[bool, typer.Option("--tiled", "--vae-tiling", help="decode in bands: less memory, the same picture")]
Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="a PNG, JPEG or WebP")]
Verify = Annotated[bool, typer.Option("--verify", help="exit code 2 unless every pixel is the same")]
ReplayOutput = Annotated[Path | None, typer.Option("--output", "-o", help="write the new picture here")]
Width = Annotated[int | None, typer.Option("--width", "-W", help="pixels")]
Height = Annotated[int | None, typer.Option("--height", "-H", help="pixels")]
PromptWords = Annotated[
    list[str] | None, typer.Argument(metavar="[MODEL] [WORD]...", help="whose; what it knows of these words")
]
Listed = Annotated[
    str | None, typer.Option("--list", "-l", help="all: things, styles, colours, places, sizes, relations or examples")
]
IdeaCount = Annotated[int, typer.Option("--count", "-c", help="ideas")]
IdeaSeed = Annotated[int | None, typer.Option("--seed", "-s", help="of the ideas; random when left out")]
IdeaLanguage = Annotated[str, typer.Option("--language", help="of the ideas: en or ko")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file, such as configs/mnist.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="such as train.steps=100")]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run from its newest checkpoint that is whole")]
ResumeIfAny = Annotated[bool, typer.Option("--resume-if-any", help="the same where there is one, else start")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check the data, time three steps, and say what all will take")]
Price = Annotated[float | None, typer.Option("--price", help="of a device and hour, for --dry-run")]
Described = Annotated[
    str | None,
    typer.Argument(metavar="PLACE", help="folder, run or any file of weights; default: ldm's own"),
]
Source = Annotated[str, typer.Argument(metavar="SRC", help="folder, run, single file or hub name; or a LoRA file")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="folder for diffusers, .safetensors file for the others")]
Form = Annotated[str, typer.Option("--to", help="diffusers or single-file; for a LoRA, peft or kohya")]
StoredDtype = Annotated[str | None, typer.Option("--dtype", help="fp32, fp16 or bf16; default: as they are")]
HalfVariant = Annotated[bool, typer.Option("--half-variant", help="a folder of *.fp16.safetensors")]
MergedLoras = Annotated[list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]", help="merged into the model")]
LoraModel = Annotated[str | None, typer.Option("--model", "-m", help="of a LoRA: a model that it is for")]


@app.command()
def generate(
    prompts: Prompts = None,
    prompt: MorePrompts = None,
    from_file: FromFile = None,
    matrix: Matrix = False,
    x: AxisX = None,
    y: AxisY = None,
    output: Output = Path("out.png"),
    preview: Preview = None,
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
    guidance_rescale: Rescale = 0.0,
    guidance_interval: Interval = (0.0, 1.0),
    apg: Apg = False,
    prompt_syntax: Syntax = "a1111",
    as_written: AsWritten = False,
    clip_skip: ClipSkip = 1,
    variation_seed: Variation = None,
    variation_strength: VariationBy = None,
    width: Width = None,
    height: Height = None,
    init: Init = None,
    strength: Strength = None,
    mask: Mask = None,
    invert_mask: InvertMask = False,
    mask_blur: MaskBlur = 0.0,
    only_masked: OnlyMasked = False,
    padding: Padding = 32,
    outpaint: Outpaint = None,
    outpaint_fill: OutpaintFill = "edge",
    fit: Fit = "resize",
    controls: Controls = None,
    hires_scale: Hires = 1.0,
    hires_upscaler: HiresUpscaler = "latent",
    hires_strength: HiresStrength = 0.7,
    hires_steps: HiresSteps = None,
    tiled: Tiled = False,
    loras: Loras = None,
    embeddings: Embeddings = None,
    vae: OtherVae = None,
    variant: Variant = None,
    revision: Revision = None,
    ema: Ema = False,
    prediction: PredictionName = None,
    allow_pickle: AllowPickle = False,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = "sdpa",
    compile: Compile = False,
) -> None:
    """Draw pictures from prompts, or from labels, or on from other pictures. An empty prompt draws anything."""
    given = dict(locals())
    from ldm.generate_command import Asked, generate_pictures
    from ldm.requests import drawing_of, loading_of, only, pictures_of, series_seed

    words = (*(prompts or ()), *(prompt or ())) or ("",)
    axes = only(x, "--x"), only(y, "--y")
    asked = Asked(words, from_file, matrix, *axes, output, preview, model, count, series_seed(seed), as_written)
    generate_pictures(asked, loading_of(given), drawing_of(given), pictures_of(given))


@app.command()
def prompts(
    words: PromptWords = None,
    model: ModelPlace = None,
    listed: Listed = None,
    count: IdeaCount = 8,
    seed: IdeaSeed = None,
    language: IdeaLanguage = "en",
    json: AsJson = False,
) -> None:
    """Print ideas for prompts, and what the model knows: all of it, or what it knows of some words."""
    from ldm.prompts_command import Asked, show_prompts

    show_prompts(Asked(tuple(words or ()), model, listed, count, seed, language, json))


@app.command()
def show(picture: Picture) -> None:
    """Say how a picture was made, by ldm or another program."""
    from ldm.metadata.show import describe_picture

    print(describe_picture(picture))


@app.command()
def replay(
    picture: Picture,
    output: ReplayOutput = None,
    model: ModelPlace = None,
    verify: Verify = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Draw a picture again from its record, and say whether every pixel is the same."""
    from ldm.commands import replay_picture

    replay_picture(picture, output, model, verify, allow_pickle)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    resume_if_any: ResumeIfAny = False,
    dry_run: DryRun = False,
    price: Price = None,
) -> None:
    """Train what a configuration describes: diffusion, fine-tuning, distillation, a VAE, CLIP or a GAN."""
    if resume + resume_if_any + dry_run > 1:
        raise UserError("of --resume, --resume-if-any and --dry-run only one can be given")
    if dry_run:
        from ldm.preflight import preflight_file

        raise typer.Exit(0 if preflight_file(config, overrides or [], price) else 1)
    if price is not None:
        raise UserError("--price does something with --dry-run only")
    from ldm.training.run import Resume, train_file

    how = Resume.IF_ANY if resume_if_any else Resume.YES if resume else Resume.NO
    try:
        last = train_file(config, overrides or [], resume=how)
    except KeyboardInterrupt:
        _tell_what_is_kept(config, overrides or [])
        raise
    # `accelerate launch` and torchrun start several processes; one of them tells
    if os.environ.get("RANK", "0") == "0":
        print(f"trained: {last}")


def _tell_what_is_kept(config: Path, overrides: list[str]) -> None:
    """What a training that was interrupted goes on from: in the main process."""
    from ldm.config import load_config
    from ldm.weights.model import latest_checkpoint

    if os.environ.get("RANK", "0") == "0":
        last = latest_checkpoint(load_config(config, overrides).output)
        told = "no checkpoint was written yet" if last is None else f"{last} is kept, and --resume goes on from it"
        print(told, file=sys.stderr)


@app.command()
def info(place: Described = None, allow_pickle: AllowPickle = False) -> None:
    """Say what a model or a file of weights is, what it is made of and where it came from."""
    from ldm.describe import describe

    print(describe(place, allow_pickle))


@app.command()
def convert(
    source: Source,
    target: Target,
    to: Form,
    dtype: StoredDtype = None,
    half_variant: HalfVariant = False,
    variant: Variant = None,
    revision: Revision = None,
    vae: OtherVae = None,
    ema: Ema = False,
    prediction: PredictionName = None,
    loras: MergedLoras = None,
    model: LoraModel = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a model as a folder of diffusers or as a single file, or a LoRA with other names; bit for bit."""
    from ldm.convert_command import convert_files

    options = {
        "dtype": dtype,
        "half_variant": half_variant,
        "variant": variant,
        "revision": revision,
        "vae": vae,
        "ema": ema,
        "prediction": prediction,
        "loras": tuple(loras or ()),
        "model": model,
        "allow_pickle": allow_pickle,
    }
    convert_files(source, target, to, options)


add_to(app)


def run(function: Any, *arguments: Any) -> None:
    """Call what a command or script does; a user's mistake ends in one message and exit code 2."""
    try:
        function(*arguments)
    except UserError as error:
        _stop(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _stop(f"{error.filename}: {error.strerror}")  # a name beyond all length, say
    except (MemoryError, RuntimeError) as error:
        if not _ran_out_of_memory(error):
            raise
        _stop("there is not enough memory for this: a smaller size or batch, --tiled or --dtype bf16 need less")
    except KeyboardInterrupt:
        _tell_interrupted()
        sys.exit(130)
    except SystemExit as ending:
        if ending.code == 130 and type(ending) is SystemExit:  # what typer makes of an interrupt, without a word
            _tell_interrupted()
        raise


def _tell_interrupted() -> None:
    if os.environ.get("RANK", "0") == "0":
        print("interrupted", file=sys.stderr)


def _stop(message: str) -> NoReturn:
    from ldm.metadata.plain import printable

    print(printable(f"error: {message}"), file=sys.stderr)  # it may quote a file
    sys.exit(2)


def _ran_out_of_memory(error: Exception) -> bool:
    """As Python, CUDA or the allocator of a CPU say it."""
    kinds = ("MemoryError", "OutOfMemoryError")
    return type(error).__name__ in kinds or "can't allocate memory" in str(error)


def main() -> None:
    """The entry point of ``ldm``."""
    run(app)


if __name__ == "__main__":
    main()
