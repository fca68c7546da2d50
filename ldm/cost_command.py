"""``ldm cost CONFIG``: what a training would take, on paper."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ldm.cost.estimate import Speed
from ldm.cost.machine import DEVICES, calibrate
from ldm.cost.measuring import Watched, watch
from ldm.cost.money import check_price
from ldm.cost.peak import measured_peak
from ldm.cost.plans import Estimate, estimate_plan, estimate_run, read
from ldm.cost.settings import CostPlan
from ldm.cost.telling import in_words, measured_in_words
from ldm.errors import UserError, choose
from ldm.images import check_folder
from ldm.publishing import disk_trouble, write_whole
from ldm.training.kinds import Run

USUAL_MFU = 0.3


class Asked(NamedTuple):
    """The flags of the command; None where one was not given.

    Attributes:
        devices: that share the work.
        tflops: the peak of a device: TFLOP/s, or a name that ``ldm.cost.machine.DEVICES`` has.
        mfu: share of it that is reached.
        price: of a device and hour.
        measure: take a step here.
        json: a file for all figures.
    """

    devices: int | None = None
    tflops: str | None = None
    mfu: float | None = None
    price: float | None = None
    measure: bool = False
    json: Path | None = None


def cost_file(config: Path, overrides: list[str], asked: Asked) -> Estimate:
    """Print what a configuration costs, and return it.

    Args:
        config: of a run, or a plan as those of ``configs/cost``.
        overrides: ``dotted.key=value``.
        asked: the flags.

    Raises:
        UserError: a flag or the configuration is wrong, or a model that it begins with is not to be had.
    """
    _check(asked)
    told = read(config, overrides)
    found = _of_plan(told, asked) if isinstance(told, CostPlan) else _of_run(told, asked)
    print(in_words(found))
    if asked.json is not None:
        text = json.dumps(found.as_data(), indent=2) + "\n"
        with disk_trouble(str(asked.json)):
            asked.json.parent.mkdir(parents=True, exist_ok=True)
            write_whole(asked.json, lambda path: path.write_text(text, encoding="utf-8"))
    return found


def _check(asked: Asked) -> None:
    if asked.devices is not None and asked.devices < 1:
        raise UserError(f"--devices should be 1 or more, got {asked.devices}")
    if asked.mfu is not None and not 0 < asked.mfu <= 1:
        raise UserError(f"--mfu should be above 0 and at most 1, got {asked.mfu}")
    check_price(asked.price)
    if asked.measure and (asked.mfu is not None or asked.tflops is not None):
        raise UserError("--measure finds out what this machine does: leave out --device-tflops and --mfu")
    if asked.json is not None:
        check_folder(asked.json.parent)
        if asked.json.is_dir():
            raise UserError(f"{asked.json} cannot be written: it is a folder")


def _of_plan(plan: CostPlan, asked: Asked) -> Estimate:
    if asked.measure:
        raise UserError("--measure takes a step of a run: give a configuration that `ldm train` takes, not a plan")
    told = asked.tflops if asked.tflops is not None else str(plan.device)
    speed = _speed_at(told, plan.mixed_precision, plan.mfu if asked.mfu is None else asked.mfu)
    price = plan.price if asked.price is None else asked.price
    return estimate_plan(plan, speed, asked.devices or plan.devices, price)


def _of_run(run: Run, asked: Asked) -> Estimate:
    devices = asked.devices or 1
    if asked.measure:
        return _measured(run, asked, devices)
    if asked.tflops is None:
        for flag, value in (("--mfu", asked.mfu), ("--price", asked.price)):
            if value is not None:
                raise UserError(f"{flag} needs --device-tflops, or --measure: without them there is no time")
        return estimate_run(run, None, devices, None, torch.cuda.is_available())
    speed = _speed_at(asked.tflops, run.train.mixed_precision, USUAL_MFU if asked.mfu is None else asked.mfu)
    return estimate_run(run, speed, devices, asked.price, gpu=True)


def _measured(run: Run, asked: Asked, devices: int) -> Estimate:
    """Price the operators of this machine, or on a GPU its operations, with a step of the run itself."""
    watched = watch(run)
    gpu = torch.cuda.is_available()
    speed = _speed_of(watched, gpu)
    counted = estimate_run(run, None, 1, None, gpu).stages[0].memory.total
    speed = replace(speed, beside=max(0, watched.memory - counted))
    alone = estimate_run(run, speed, 1, asked.price, gpu)
    print(measured_in_words(watched, alone.stages[0], measured_peak(run.train.mixed_precision)) + "\n")
    return alone if devices == 1 else estimate_run(run, speed, devices, asked.price, gpu)


def _speed_of(watched: Watched, gpu: bool) -> Speed:
    if watched.step is not None and not gpu:
        return Speed(calibrate([watched.step]))
    seconds = watched.rehearsed.seconds - watched.rehearsed.waited
    return Speed(tflops=watched.rehearsed.flops / seconds / 1e12, mfu=1.0)


def _speed_at(told: str, mixed_precision: str, mfu: float) -> Speed:
    """Of a device that is named, or whose TFLOP/s are."""
    try:
        tflops = float(told)
    except ValueError:
        name, half = choose(told, DEVICES, "device"), mixed_precision != "no"
        peak = DEVICES[name][half]
        note = f"{peak.tflops:g} TFLOP/s of a {name} in {'16' if half else '32'} bits, for which no source was read"
        return Speed(tflops=peak.tflops, mfu=mfu, assumed="" if peak.source else note)
    if not 0 < tflops < float("inf"):
        raise UserError(f"--device-tflops should be above 0, or one of {', '.join(DEVICES)}; got {told}")
    return Speed(tflops=tflops, mfu=mfu)
