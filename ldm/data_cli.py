"""The commands about training data, ``ldm data ...``. Only typer is imported here, as in ``ldm.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look at training data, before it costs a night of training.",
)

Place = Annotated[str, typer.Argument(metavar="SOURCE", help="folder, tars, table or hub name; or a CONFIG.yaml")]
Resolution = Annotated[
    list[int] | None, typer.Option("--resolution", help="side in pixels to train at: finds pictures too small for it")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", "-b", help="finds buckets with fewer pictures")]
TokenizerOf = Annotated[str | None, typer.Option("--model", "-m", help="whose tokenizer counts; default: CLIP's")]
Near = Annotated[int, typer.Option("--near", metavar="BITS", help="of 64, in which near copies may differ: 0 to 6")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="processes that open pictures; default: one a processor")
]
Quarantine = Annotated[
    Path | None, typer.Option("--quarantine", metavar="LIST", help="write what to leave out, for data.skip")
]
Html = Annotated[Path | None, typer.Option("--html", metavar="PAGE", help="write a page with plots and small pictures")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write all that was found, for programs")]


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file with a `cache`")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="of the CONFIG, such as data.path=FOLDER")
]


@data_app.command()
def check(
    source: Place,
    overrides: Overrides = None,
    resolution: Resolution = None,
    batch_size: BatchSize = None,
    model: TokenizerOf = None,
    near: Near = 4,
    workers: Workers = None,
    quarantine: Quarantine = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Open every picture and caption, and list what is wrong. Exit code 1 when something is; deletes nothing."""
    from ldm.check_command import Asked, check_source

    sides = tuple(resolution or ())
    changes = tuple(overrides or ())
    wrong = check_source(Asked(source, sides, batch_size, model, near, workers, quarantine, html, json, changes))
    raise typer.Exit(1 if wrong else 0)


@data_app.command()
def cache(config: Config, overrides: Overrides = None) -> None:
    """Encode all pictures and captions of a run once, before it trains; goes on where it was stopped."""
    from ldm.cache_command import cache_file

    cache_file(config, overrides or [])


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="which data set: starter")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write")] = Path("data/starter"),
    downloads: Annotated[
        Path | None, typer.Option("--downloads", help="where the npm tarballs are, or come to be; default: in --out")
    ] = None,
    side: Annotated[int, typer.Option("--side", min=32, max=1024, help="of the rendered pictures, in pixels")] = 256,
    avatars: Annotated[int, typer.Option("--avatars", min=0, help="of each of their styles; 0: none")] = 400,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="that render; default: one a processor")
    ] = None,
) -> None:
    """Fetch, verify and render openly licensed pictures to compose training data of; goes on where it was stopped."""
    from ldm.starter_command import prepare_data

    prepare_data(name, out, downloads, side, avatars, workers)
