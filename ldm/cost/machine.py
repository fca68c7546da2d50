"""How long counted work takes on a device.

Two ways, of which the second is for a machine that is at hand:

*By utilisation.* Seconds = operations / (peak operations a second x MFU): what a data sheet promises, and which share
of it training reaches (model FLOPs utilisation, Chowdhery et al. 2022, appendix B; here with what is recomputed).
Usual shares for convolutional U-Nets are a quarter to a half.

*By operator.* A step is measured once, every operator apart, and for each kind of operator and dtype non-negative
a, b and c are fitted so that a call takes

    a x operations + b x bytes moved + c     seconds,

a roofline (Williams et al. 2009) whose two sides add up, with the cost of a call. All are scaled so that together they
take what the whole step took. An operator that was not met takes what those that compute no products take. Another
configuration is then counted on paper and its calls are priced. The bytes matter: in small networks half of the time
goes to operators that multiply nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np

from ldm.cost.counting import Kind, Work, Works


class Peak(NamedTuple):
    """The most that a device can do without sparsity.

    Attributes:
        tflops: TFLOP/s.
        source: the table that it was read in, which names the maker's data sheet; empty where it is assumed.
    """

    tflops: float
    source: str = ""


_COMPOSER = "Composer 0.32.1, composer/callbacks/speed_monitor.py"
_L40S = "NVIDIA L40S data sheet, without sparsity"
_CARDS = "128 operations a tensor core and cycle, NVIDIA's numbers of cores and boost clock"
_FABRIC = "Lightning Fabric 2.6.6, lightning_fabric/utilities/throughput.py"
# In float32, or TF32 where the device has it, and in 16 bits; V100, H100 and H200 are those on SXM boards.
DEVICES: Mapping[str, tuple[Peak, Peak]] = {
    "V100": (Peak(15.7, _COMPOSER), Peak(125.0, _COMPOSER)),
    "T4": (Peak(8.1, _COMPOSER), Peak(65.0, _COMPOSER)),
    "A10": (Peak(62.5, _COMPOSER), Peak(125.0, _COMPOSER)),
    "A100": (Peak(156.0, _COMPOSER), Peak(312.0, _COMPOSER)),
    "L4": (Peak(60.0, _FABRIC), Peak(121.0, _FABRIC)),
    "L40S": (Peak(183.0, _L40S), Peak(362.0, _L40S)),
    "H100": (Peak(494.5, _COMPOSER), Peak(989.5, _COMPOSER)),
    "H200": (Peak(494.5, _COMPOSER), Peak(989.5, _COMPOSER)),
    "RTX 3090": (Peak(35.6, _FABRIC), Peak(71.2, _CARDS)),
    "RTX 4090": (Peak(82.6, _FABRIC), Peak(165.2, _CARDS)),
}


class Price(NamedTuple):
    """Seconds for an operation, for a byte moved, and for a call."""

    flop: float
    byte: float
    call: float

    def of(self, work: Work) -> float:
        """Seconds of work."""
        return self.flop * work.flops + self.byte * work.moved + self.call * work.calls


@dataclass(frozen=True)
class Machine:
    """A machine whose operators have been measured.

    Attributes:
        prices: by kind of operator.
        other: of kinds that were not met.
    """

    prices: Mapping[Kind, Price]
    other: Price

    def seconds(self, works: Works) -> float:
        """Of all calls, one after another."""
        return sum(self.prices.get(kind, self.other).of(work) for kind, work in works.items())

    def unmet(self, works: Works) -> float:
        """The share of the seconds that is of kinds that were not met."""
        guessed = sum(self.other.of(work) for kind, work in works.items() if kind not in self.prices)
        return guessed / max(self.seconds(works), 1e-12)


Calls = Sequence[tuple[Kind, Work]]


class Measured(NamedTuple):
    """A step that was measured.

    Attributes:
        rounds: the same calls, several times over.
        seconds: of the step without anybody watching.
    """

    rounds: Sequence[Calls]
    seconds: float


def calibrate(steps: Iterable[Measured]) -> Machine:
    """The prices of a machine from measured steps."""
    calls: dict[Kind, list[Work]] = {}
    for rounds, seconds in steps:
        turns = [*zip(*rounds, strict=True)]
        typical = [(turn[0][0], median(work.seconds for _, work in turn), turn[0][1]) for turn in turns]
        scale = seconds / sum(found for _, found, _ in typical)
        for kind, found, work in typical:
            calls.setdefault(kind, []).append(Work(work.flops, work.moved, 1, scale * found))
    prices = {kind: _fit(works) for kind, works in calls.items()}
    plain = [work for works in calls.values() for work in works if not work.flops]
    return Machine(prices, _fit(plain))


def _fit(works: Sequence[Work]) -> Price:
    """Non-negative least squares of relative size: weights of one over the root of the seconds; their sum is kept."""
    from scipy.optimize import nnls

    rows = np.array([[work.flops, work.moved, work.calls] for work in works], dtype=float)
    seconds = np.array([work.seconds for work in works])
    weights = 1 / np.sqrt(seconds + 1e-9)
    sizes = np.maximum(rows.max(axis=0), 1e-12)
    found, _ = nnls(rows / sizes * weights[:, None], seconds * weights)
    found = found / sizes
    reached = float((rows @ found).sum())
    return Price(*(float(value) for value in found * (seconds.sum() / reached if reached else 0)))
