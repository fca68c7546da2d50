"""Kill a training run at random moments, resume it, and compare what comes out with a run that was left alone.

python scripts/kill_test.py                                    # a small run of the label model, five kills
python scripts/kill_test.py --kills 20 --in-save 8             # eight of them while a checkpoint is being written
python scripts/kill_test.py configs/mnist_text/vae.yaml train.steps=40 train.checkpoint_every=5 --kills 3

Each kill is a run of its own: started, killed with SIGKILL, resumed with `ldm train CONFIG --resume` to its end.
Weights, moving averages, optimisers and log must then be those of the undisturbed run in every bit; the exit
code is 1 where they are not. A kill in a save waits for the folder of an unfinished checkpoint to appear, and for a
random moment more; it counts where that folder is then still unfinished.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ldm.cli import run
from ldm.config import load_config
from ldm.errors import UserError
from ldm.publishing import UNFINISHED

_CONFIG = Path(__file__).parents[1] / "configs" / "mnist_label.yaml"
_SMALL = "train.steps=30 train.batch_size=4 train.lr_warmup_steps=5 train.log_every=1 train.sample_every=15 \
train.checkpoint_every=2 train.workers=1 data.limit=100 sample.steps=3 sample.count=10"


class Trial:
    """One configuration, trained in one folder or another."""

    def __init__(self, config: Path, overrides: list[str], folder: Path) -> None:
        self.config, self.overrides, self.folder = config, overrides, folder

    def output(self, name: str) -> Path:
        """The run's folder: of one name in all, as a LoRA's file has the name of its run."""
        return self.folder / name / "run"

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Train in the folder ``name``; resume where there is a run in it already."""
        output = self.output(name)
        resume = ["--resume"] if (output / "config.yaml").exists() else []
        words = ["train", str(self.config), *self.overrides, f"output={output}", *resume]
        with (self.folder / f"{name}.txt").open("ab") as said:
            return subprocess.Popen([sys.executable, "-m", "ldm", *words], stdout=said, stderr=said)

    def finish(self, name: str) -> Path:
        """Train to the end, and return the last checkpoint."""
        from ldm.weights.model import resolve

        if self.start(name).wait() != 0:
            raise UserError(f"the run failed:\n{(self.folder / f'{name}.txt').read_text()}")
        return resolve(self.output(name))

    def kill(self, name: str, after: float) -> str | None:
        """Start a run and kill it after so many seconds; what it has left, in words, or None where it ended first."""
        process = self.start(name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        return self._kill(process, name)

    def kill_in_save(self, name: str, save: int, share: float) -> str | None:
        """Start a run and kill it in its save number ``save``, a share of the shortest one's time after it began."""
        process, saves, began, lasted = self.start(name), 0, 0.0, 0.0
        was_writing = False
        while process.poll() is None:
            writing = any((self.output(name) / "checkpoints").glob(f"{UNFINISHED}*"))
            if writing and not was_writing:
                saves, began = saves + 1, time.perf_counter()
            if was_writing and not writing:
                lasted = min(lasted or 60, time.perf_counter() - began)
            if writing and saves == save and time.perf_counter() - began >= share * lasted:
                break
            was_writing = writing
            time.sleep(0.001)
        return self._kill(process, name)

    def _kill(self, process: subprocess.Popen[bytes], name: str) -> str | None:
        process.send_signal(signal.SIGKILL)  # nothing to one that has ended
        process.wait()
        if process.returncode != -signal.SIGKILL:
            return None
        if not (self.output(name) / "config.yaml").exists():
            return "had not begun"
        left = sorted(path.name for path in (self.output(name) / "checkpoints").glob("*"))
        return " ".join(left) or "no checkpoint yet"


def differences(one: Path, other: Path) -> list[str]:
    """Names of what is not the same, bit for bit, in two checkpoints and the logs of their runs."""
    a, b = _everything(one), _everything(other)
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def _everything(checkpoint: Path) -> dict[str, bytes | str]:
    import torch

    from ldm.training.journal import read_log
    from ldm.weights.files import read_tensors

    found: dict[str, bytes | str] = {}
    for file in checkpoint.rglob("*.safetensors"):
        for name, tensor in read_tensors(file).items():
            found[f"{file.relative_to(checkpoint)} {name}"] = _bits(tensor)
    state = torch.load(checkpoint / "training" / "state.pt", weights_only=True)
    for player, optimizer in state["optimizers"].items():
        found[f"{player} optimizer, settings"] = repr(optimizer["param_groups"])
        for number, moments in optimizer["state"].items():
            found |= {f"{player} optimizer {number} {name}": _bits(value) for name, value in moments.items()}
    for record in read_log(checkpoint.parents[1] / "log.jsonl"):
        clockless = {name: value for name, value in record.items() if name not in ("images_per_second", "data_wait")}
        found[f"log of step {record['step']}"] = repr(clockless)
    return found


def _bits(tensor: object) -> bytes:
    import torch

    assert isinstance(tensor, torch.Tensor)
    return (
        f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
        + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    )


def kill_test(config: Path, overrides: list[str], kills: int, in_save: int, seed: int, folder: Path) -> None:
    """Print a row for every kill; exit code 1 where a resumed run differs."""
    trial, moments = Trial(config, overrides, folder), random.Random(seed)
    began = time.perf_counter()
    whole = trial.finish("whole")
    settings = load_config(config, overrides).train
    saves = -(-settings.steps // settings.checkpoint_every)
    duration = time.perf_counter() - began
    print(f"{config.name} {' '.join(overrides)}")
    print(f"undisturbed: {whole.name} in {duration:.1f} s; {len(_everything(whole))} things are compared")
    print(f"{'killed after':>12} | {'different':>9} | what the kill left", flush=True)
    killed = saving = bad = attempts = 0
    while killed < kills:
        name, attempts = f"killed_{attempts}", attempts + 1
        if saving < in_save:
            when = f"save {(number := moments.randint(1, saves)):2d}"
            left = trial.kill_in_save(name, number, moments.random())
            missed = left is not None and UNFINISHED not in left
            if left is None or (missed and killed - saving == kills - in_save):
                continue
        else:
            after = moments.uniform(0, duration)
            when, left = f"{after:.2f} s", trial.kill(name, after)
            if left is None:  # this run was faster than the undisturbed one
                duration = after
                continue
        killed, saving = killed + 1, saving + (UNFINISHED in left)
        found = differences(whole, trial.finish(name))
        bad += bool(found)
        rest = "".join(f"\n  {name}" for name in found[:5])
        print(f"{when:>12} | {len(found):9d} | {left}{rest}", flush=True)
        shutil.rmtree(folder / name)
    told = f"{kills - bad} of {kills} resumed runs are the undisturbed run, bit for bit"
    print(f"{told}; {saving} {'was' if saving == 1 else 'were'} killed in a save")
    if bad:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=_CONFIG, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"with no CONFIG: {_SMALL}")
    parser.add_argument("--kills", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--in-save", type=int, default=0, help="how many of them while a checkpoint is written")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_intermixed_args()
    overrides = options.overrides or (_SMALL.split() if options.config == _CONFIG else [])
    with tempfile.TemporaryDirectory() as folder:
        run(kill_test, options.config, overrides, options.kills, options.in_save, options.seed, Path(folder))


if __name__ == "__main__":
    main()
