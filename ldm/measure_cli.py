"""The commands that measure models. Only typer is imported here, as in ``ldm.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

Evaluated = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="as for generate, or an autoencoder's run; default: ldm's own")
]
RealData = Annotated[
    str, typer.Option("--data", "-d", help="real pictures: a place, a CONFIG.yaml or '{source: mnist, ...}'")
]
FloorData = Annotated[str | None, typer.Option("--floor", help="other real pictures, as many as are drawn")]
FeaturesOf = Annotated[
    list[str] | None,
    typer.Option(
        "--features", "-f", metavar="KIND:PLACE", help="judge:FILE, clip:FOLDER, inception:FILE, onnx:FILE,pixels=..."
    ),
]
ClipPlace = Annotated[str | None, typer.Option("--clip", help="folder or run: its score, and captions retrieved")]
Reconstructed = Annotated[bool, typer.Option("--reconstruction", help="what the autoencoder loses, and its latents")]
ReportFolder = Annotated[Path, typer.Option("--output", "-o", help="folder of the report")]
DrawnCount = Annotated[int, typer.Option("--count", "-c", help="pictures for each setting; 0 draws none")]
ReferenceCount = Annotated[int | None, typer.Option("--reference-count", help="so many real pictures; default: all")]
StepList = Annotated[str | None, typer.Option("--steps", help="moves of the sampler; several are compared: 10,20,50")]
GuidanceList = Annotated[
    str | None, typer.Option("--cfg-scale", "--guidance-scale", "--guidance", help="the same of guidance: 1,3,7")
]
AskedWith = Annotated[str, typer.Option("--conditions", help="what is asked for: auto, none, label or text")]
FirstSeed = Annotated[int, typer.Option("--seed", "-s", help="of the first picture")]
OpenWorkers = Annotated[int, typer.Option("--workers", help="processes that open pictures")]


def evaluate(
    data: RealData,
    model: Evaluated = None,
    floor: FloorData = None,
    features: FeaturesOf = None,
    clip: ClipPlace = None,
    reconstruction: Reconstructed = False,
    output: ReportFolder = Path("evaluation"),
    count: DrawnCount = 1000,
    reference_count: ReferenceCount = None,
    steps: StepList = None,
    guidance: GuidanceList = None,
    sampler: Sampler = None,
    conditions: AskedWith = "auto",
    seed: FirstSeed = 0,
    batch_size: BatchSize = 16,
    workers: OpenWorkers = 2,
    loras: Loras = None,
    embeddings: Embeddings = None,
    vae: OtherVae = None,
    ema: Ema = False,
    variant: Variant = None,
    revision: Revision = None,
    prediction: PredictionName = None,
    allow_pickle: AllowPickle = False,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = "sdpa",
    compile: Compile = False,
) -> None:
    """Measure a model: distances to real pictures, precision and recall, captions met, what its autoencoder loses."""
    from ldm.evaluate_command import Asked, evaluate_model, several
    from ldm.requests import loading_of

    loading = loading_of({**locals(), "device": None})
    settings = {
        "features": tuple(features or ()),
        "clip": clip,
        "reconstruction": reconstruction,
        "count": count,
        "reference_count": reference_count,
        "steps": several(steps, int, "--steps"),
        "guidance": several(guidance, float, "--cfg-scale"),
        "sampler": sampler,
        "conditions": conditions,
        "seed": seed,
        "batch_size": batch_size,
        "workers": workers,
    }
    evaluate_model(Asked(model, data, floor, output, settings, loading, device))


Costed = Annotated[Path, typer.Argument(metavar="CONFIG", help="of a training, or a plan as in configs/cost")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="such as train.batch_size=32")]
Devices = Annotated[int | None, typer.Option("--devices", help="that share the work")]
DeviceSpeed = Annotated[
    str | None, typer.Option("--device-tflops", metavar="NAME|TFLOPS", help="peak of a device: a100, h100, ... or 312")
]
Utilisation = Annotated[float | None, typer.Option("--mfu", help="share of the peak that is reached, 0 to 1")]
HourPrice = Annotated[float | None, typer.Option("--price", help="of a device and hour")]
Measure = Annotated[bool, typer.Option("--measure", help="take a step here, and reckon with it")]
Figures = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write all figures, for programs")]


def cost(
    config: Costed,
    overrides: Changes = None,
    devices: Devices = None,
    device_tflops: DeviceSpeed = None,
    mfu: Utilisation = None,
    price: HourPrice = None,
    measure: Measure = False,
    json: Figures = None,
) -> None:
    """Say what a training would take, on paper: operations, memory per device, hours, money."""
    from ldm.cost_command import Asked, cost_file

    cost_file(config, overrides or [], Asked(devices, device_tflops, mfu, price, measure, json))


Compared = Annotated[Path, typer.Argument(metavar="CONFIG", help="of a comparison, as in configs/compare")]
CountOnly = Annotated[bool, typer.Option("--dry-run", help="count operations and memory, and train nothing")]


def compare(config: Compared, overrides: Changes = None, dry_run: CountOnly = False) -> None:
    """Measure side by side what codecs save, or what families of models give; goes on where it was interrupted."""
    from ldm.compare_command import compare_file

    compare_file(config, overrides or [], dry_run)


def add_to(app: typer.Typer) -> None:
    """Make these commands of ``ldm``."""
    app.command()(evaluate)
    app.command()(cost)
    app.command()(compare)
