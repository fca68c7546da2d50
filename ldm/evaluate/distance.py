"""How far apart two sets of pictures are, in the features of some network.

The Fréchet distance between Gaussians fitted to the features of either set,

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))    (Heusel et al. 2017, arXiv:1706.08500, eq. 6),

is squared: its unit is that of the features' variance. Its value depends on the network and, through the bias of
the fitted covariances, on the number of pictures. So a report always names both, and stands beside the floor: the
distance between as many real pictures and the same reference. It is never called FID, which means Inception v3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ldm.errors import need


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
    shapes = tuple(features_a.shape), tuple(features_b.shape)
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"features of shapes {shapes[0]} and {shapes[1]}, expected (N, D) and (M, D) with N, M >= 2")
    metric_class = need("torchmetrics.image.fid", "evaluate").FrechetInceptionDistance
    metric = metric_class(feature=_AlreadyFeatures(shapes[0][1]))
    metric.update(features_a.double().cpu(), real=True)
    metric.update(features_b.double().cpu(), real=False)
    return metric.compute().item()


class _AlreadyFeatures(nn.Module):
    """Stands where torchmetrics expects the network: what comes in are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
