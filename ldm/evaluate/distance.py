"""How far apart two sets of pictures are, in the features of some network.

The Fréchet distance between Gaussians fitted to the features of either set,

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))    (Heusel et al. 2017, arXiv:1706.08500, eq. 6),

is squared: its unit is that of the features' variance. Its value depends on the network and, through the bias of
the fitted covariances, on the number of pictures. So a report always names both, and stands beside the floor: the
distance between as many real pictures and the same reference. It is never called FID, which means Inception v3.

The kernel distance is the squared maximum mean discrepancy with the kernel k(x, y) = (x y / D + 1)^3 (Binkowski et al.
2018, arXiv:1801.01401, section 4), by its unbiased estimate

    sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 sum_{i, j} k(x_i, y_j) / m^2

as a mean over subsets of m of either set. It does not depend on the number of pictures but through its noise, and may
come out a little below 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.evaluate.fidelity import torchmetrics


@dataclass(frozen=True)
class DistanceReport:
    """A distance and what it needs to be understood.

    Attributes:
        distance: Fréchet distance between the generated pictures and the reference.
        floor: the same between real pictures, as many as were generated, and the reference.
        network: the name of the network whose features were compared.
        count: how many pictures were generated.
        reference_count: how many pictures the reference has.
    """

    distance: float
    floor: float
    network: str
    count: int
    reference_count: int

    @property
    def ratio(self) -> float:
        """How many times the floor the distance is; 1 is as good as real pictures."""
        return self.distance / self.floor

    def __str__(self) -> str:
        return (
            f"Fréchet distance {self.distance:.3f} in the features of {self.network}, "
            f"n = {self.count:,} against {self.reference_count:,} "
            f"(floor, real pictures: {self.floor:.3f}; ratio {self.ratio:.2f})"
        )


def measure(generated: Tensor, real: Tensor, reference: Tensor, network: str) -> DistanceReport:
    """Compare features (N, D) of generated pictures with the reference, beside real ones as a floor.

    Args:
        generated: (N, D) features of generated pictures.
        real: (N, D) features of as many real pictures that are not in the reference.
        reference: (M, D) features of the reference.
        network: the name of the network that gave the features.

    Raises:
        ValueError: there are not as many real pictures as generated ones.
    """
    if len(generated) != len(real):
        raise ValueError(f"{len(generated)} generated and {len(real)} real pictures: the floor needs as many of both")
    distance, floor = frechet_distance(generated, reference), frechet_distance(real, reference)
    return DistanceReport(distance, floor, network, len(generated), len(reference))


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance between two sets of features, computed in float64 by torchmetrics.

    Args:
        features_a: (N, D), N >= 2.
        features_b: (M, D), M >= 2.

    Raises:
        ValueError: the sets have other shapes.
        UserError: torchmetrics is not installed.
    """
    check_sets(features_a, features_b)
    metric_class = torchmetrics("image.fid").FrechetInceptionDistance
    # not synced: it would wait for all processes of a run to have features of their own
    metric = metric_class(feature=_AlreadyFeatures(features_a.shape[1]), sync_on_compute=False)
    with _one_thread():
        metric.update(features_a.double().cpu(), real=True)
        metric.update(features_b.double().cpu(), real=False)
        return metric.compute().item()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Several would sum in another order, and torchrun gives each process one where a process alone has all."""
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(own)


class Kernel(NamedTuple):
    """A kernel distance: its mean and standard deviation over subsets, how many there were, and how large."""

    mean: float
    spread: float
    subsets: int
    size: int


def kernel_distance(
    features_a: Tensor, features_b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Kernel:
    """Kernel distance between two sets of features, computed in float64 by torchmetrics.

    Args:
        features_a: (N, D), N >= 2.
        features_b: (M, D), M >= 2.
        subsets: how many pairs of subsets are drawn; one where they would be the whole of both sets each time.
        size: of the subsets, at most that of the smaller set.
        seed: of the drawing.

    Raises:
        ValueError: the sets have other shapes.
        UserError: torchmetrics is not installed.
    """
    check_sets(features_a, features_b)
    poly_mmd = torchmetrics("image.kid").poly_mmd
    sets = [features.double().cpu() for features in (features_a, features_b)]
    size = min(size, *map(len, sets))
    subsets = 1 if all(len(each) == size for each in sets) else subsets
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        a, b = (each[torch.randperm(len(each), generator=generator)[:size]] for each in sets)
        found.append(poly_mmd(a, b))
    values = torch.stack(found)
    return Kernel(values.mean().item(), values.std(correction=0).item(), subsets, size)


def check_sets(features_a: Tensor, features_b: Tensor) -> None:
    """Refuse sets of features that cannot be compared.

    Raises:
        ValueError: they are not (N, D) and (M, D) with N, M >= 2.
    """
    shapes = tuple(features_a.shape), tuple(features_b.shape)
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"features of shapes {shapes[0]} and {shapes[1]}, expected (N, D) and (M, D) with N, M >= 2")


class _AlreadyFeatures(nn.Module):
    """Stands where torchmetrics expects the network: what comes in are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
