"""Pictures read from shards: ours beside ``datasets`` streaming, on the same tars and the same parquet files.

    python benchmarks/streaming.py --folder FOLDER

The shards are written to FOLDER once: JPEGs of noise, with captions, as img2dataset lays them out; and the same rows as
parquet files. Each measurement is a process of its own, in turn. Both sides shuffle over as many samples, decode every
picture to a uint8 tensor and read its caption, in one process: a data loader's workers would each do as much.
``first_s`` is until the first batch of an epoch, ``resumed_s`` until the first batch after half of it,
``samples_per_s`` is of the batches after the first; ``peak_mib`` is the most memory of the process over what it held
after its imports.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import machine, report
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.streamed_table import StreamedTableConfig, StreamedTableSource
from ldm.data.webdataset import WebDatasetConfig, WebDatasetSource

BATCH = 16
SEED = 1
SHUFFLE = 1000
FORMATS = ("tar", "parquet")
Rows = list[tuple[Tensor, str]]


def write_files(folder: Path, samples: int, per_shard: int, size: int) -> None:
    """``tar/`` and ``parquet/`` with the same samples."""
    for name in FORMATS:
        (folder / name).mkdir(parents=True)
    pictures = [_jpeg(size, seed) for seed in range(50)]
    for shard, first in enumerate(range(0, samples, per_shard)):
        numbers = range(first, min(samples, first + per_shard))
        _write_tar(folder / "tar" / f"{shard:05}.tar", numbers, pictures)
        _write_parquet(folder / "parquet" / f"{shard:05}.parquet", numbers, pictures)


def _jpeg(size: int, seed: int) -> bytes:
    """Noise of a few pixels' width, which takes about as many bytes as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def _write_tar(path: Path, numbers: range, pictures: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for n in numbers:
            words = json.dumps({"caption": f"caption {n}", "key": f"{n:09}"}).encode()
            parts = {"jpg": pictures[n % len(pictures)], "json": words, "txt": f"caption {n}".encode()}
            for ending, content in parts.items():
                member = tarfile.TarInfo(f"{n:09}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps({"successes": len(numbers)}))


def _write_parquet(path: Path, numbers: range, pictures: list[bytes]) -> None:
    arrow, datasets = importlib.import_module("pyarrow.parquet"), importlib.import_module("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [{"bytes": pictures[n % len(pictures)], "path": None} for n in numbers]
    columns = {"image": images, "text": [f"caption {n}" for n in numbers]}
    arrow.write_table(datasets.Dataset.from_dict(columns, features=features).data.table, path, row_group_size=1000)


class _Ours(Dataset[tuple[Tensor, str]]):
    def __init__(self, kind: str, folder: Path) -> None:
        place = str(folder / kind)
        if kind == "tar":
            self.source: Any = WebDatasetSource(WebDatasetConfig(path=place, shuffle=SHUFFLE))
        else:
            self.source = StreamedTableSource(StreamedTableConfig(path=place, shuffle=SHUFFLE))
        self.source.arrange(BATCH, SEED)

    def __getitem__(self, k: int) -> tuple[Tensor, str]:
        example = self.source.read(k)
        return example.image, example.captions[0]


def ours(kind: str, folder: Path, samples: int, half: bool) -> Iterator[Rows]:
    steps = range(samples // BATCH // 2 if half else 0, samples // BATCH)
    order = [list(range(step * BATCH, (step + 1) * BATCH)) for step in steps]
    yield from DataLoader(_Ours(kind, folder), batch_sampler=order, collate_fn=list)


def theirs(kind: str, folder: Path, samples: int, half: bool) -> Iterator[Rows]:
    datasets = importlib.import_module("datasets")
    packaged = {"tar": "webdataset", "parquet": "parquet"}[kind]
    files = sorted(map(str, (folder / kind).glob(f"*.{kind}")))
    table = datasets.load_dataset(packaged, data_files=files, split="train", streaming=True)
    table = table.skip(samples // 2) if half else table.shuffle(SEED, buffer_size=SHUFFLE)
    picture, caption = ("jpg", "txt") if kind == "tar" else ("image", "text")

    def read(rows: list[dict[str, Any]]) -> Rows:
        return [(torch.from_numpy(np.array(row[picture])).permute(2, 0, 1), row[caption]) for row in rows]

    yield from DataLoader(table, batch_size=BATCH, collate_fn=read)


CONTESTANTS = {"datasets": theirs, "ours": ours}


def measure(who: str, kind: str, folder: Path, most: int) -> dict[str, float]:
    """Read an epoch, or ``most`` samples of it, in this process."""
    for module in ("datasets", "pyarrow.parquet", "fsspec", "ldm.data.parquets"):
        importlib.import_module(module)
    samples = json.loads((folder / "samples.json").read_text())
    before = _memory("VmRSS")
    resumed, *_ = _timed(CONTESTANTS[who](kind, folder, samples, True), BATCH)
    first, rest, read, peak = _timed(CONTESTANTS[who](kind, folder, samples, False), most)
    return {"samples_per_s": read / rest, "first_s": first, "resumed_s": resumed, "peak_mib": peak - before}


def _memory(field: str) -> float:
    """Of this process, on Linux, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10


def _timed(series: Iterator[Rows], most: int) -> tuple[float, float, int, float]:
    """Seconds until the first batch; seconds for those after it, and how many samples these were; the most memory."""
    start = time.perf_counter()
    check = next(series)
    first, read = time.perf_counter() - start, 0
    assert all(
        image.dtype == torch.uint8 and image.shape[0] == 3 and text.startswith("caption") for image, text in check
    )
    while read + BATCH < most and (batch := next(series, None)) is not None:
        read += len(batch)
    rest = time.perf_counter() - start - first
    return first, rest, max(1, read), _memory("VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the shards are, or are written")
    parser.add_argument("--samples", type=int, default=20_000, help="to write")
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256, help="side of the pictures, in pixels")
    parser.add_argument("--most", type=int, default=5000, help="samples to read in each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument(
        "--only", nargs=2, metavar=("WHO", "FORMAT"), help="measure one side, once, and print it as JSON"
    )
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(*given.only, given.folder, given.most)))
        return
    if not (given.folder / "samples.json").is_file():
        write_files(given.folder, given.samples, given.per_shard, given.size)
        (given.folder / "samples.json").write_text(json.dumps(given.samples))
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(given.repeats):
        for kind in FORMATS:
            for who in CONTESTANTS:
                command = [sys.executable, __file__, "--folder", str(given.folder), "--most", str(given.most)]
                done = subprocess.run([*command, "--only", who, kind], check=True, stdout=subprocess.PIPE, text=True)
                taken.setdefault((kind, who), []).append(json.loads(done.stdout.splitlines()[-1]))
    rows = [
        {"format": kind, "who": who, **{key: statistics.median(run[key] for run in runs) for key in runs[0]}}
        for (kind, who), runs in taken.items()
    ]
    size = sum(path.stat().st_size for path in (given.folder / "tar").glob("*.tar")) / 2**30
    report({**machine(torch.device("cpu")), "tars_gib": round(size, 3), "repeats": given.repeats}, rows, given.output)


if __name__ == "__main__":
    main()
