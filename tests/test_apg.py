"""Adaptive projected guidance against diffusers' guider, and what the paper says of it."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from hypothesis import given
from hypothesis import strategies as st

from ldm.diffusion.apg import ProjectedGuidance
from ldm.errors import UserError


def estimates(steps: int, batch: int = 3, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Conditional and unconditional estimates; the pictures of a batch differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.1, 1.0, 5.0])[:batch, None, None, None]
    drawn = torch.randn(steps, 2, batch, 4, 8, 8, generator=generator) * scale
    return [(cond, uncond) for cond, uncond in drawn]


@pytest.mark.parametrize("momentum", [0.0, -0.5, 0.3])
@pytest.mark.parametrize("threshold", [math.inf, 15.0, 2.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 3.0, 12.0])
def test_equals_diffusers_over_a_run(scale: float, eta: float, threshold: float, momentum: float) -> None:
    ours, buffer = ProjectedGuidance(eta, threshold, momentum), MomentumBuffer(momentum)
    for cond, uncond in estimates(4):
        # its original formulation is the paper's, with the scale counted from 0
        limit = 0.0 if math.isinf(threshold) else threshold
        theirs = normalized_guidance(cond, uncond, scale - 1, buffer, eta, limit, use_original_formulation=True)
        torch.testing.assert_close(ours(cond, uncond, scale), theirs, rtol=1e-5, atol=1e-5 * scale)


@given(st.floats(-3, 20), st.integers(0, 1000))
def test_without_its_three_changes_it_is_classifier_free_guidance(scale: float, seed: int) -> None:
    plain = ProjectedGuidance(eta=1.0, norm_threshold=math.inf, momentum=0.0)
    for cond, uncond in estimates(2, seed=seed):
        torch.testing.assert_close(plain(cond, uncond, scale), uncond + scale * (cond - uncond), rtol=1e-5, atol=1e-4)


def test_eta_0_moves_at_right_angles_and_no_further_than_the_threshold() -> None:
    (cond, uncond) = estimates(1)[0]
    moved = ProjectedGuidance(eta=0.0, norm_threshold=2.0)(cond, uncond, 5.0) - cond
    lengths = moved.flatten(1).norm(dim=1)
    cosine = (moved * cond).flatten(1).sum(1) / (lengths * cond.flatten(1).norm(dim=1))
    torch.testing.assert_close(cosine, torch.zeros(3), rtol=0, atol=1e-5)
    assert (lengths <= 4 * 2.0 * (1 + 1e-5)).all()
    assert (lengths > 1).all()


def test_a_picture_does_not_depend_on_its_batch() -> None:
    together, alone = ProjectedGuidance(), ProjectedGuidance()
    for cond, uncond in estimates(5):
        batch = together(cond, uncond, 7.5)
        assert torch.equal(batch[1:2], alone(cond[1:2], uncond[1:2], 7.5))


def test_a_run_does_not_remember_another() -> None:
    steps = estimates(3)
    first, second = ProjectedGuidance(), ProjectedGuidance()
    drawn = [first(cond, uncond, 7.5) for cond, uncond in steps]
    again = [second(cond, uncond, 7.5) for cond, uncond in steps]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not torch.equal(first(*steps[0], 7.5), drawn[0])  # within one run it does


@pytest.mark.parametrize("zero", ["cond", "difference"])
def test_zeros_make_no_nan(zero: str) -> None:
    cond, uncond = estimates(1)[0]
    cond = torch.zeros_like(cond) if zero == "cond" else cond
    uncond = cond.clone() if zero == "difference" else uncond
    guided = ProjectedGuidance()(cond, uncond, 7.5)
    assert guided.isfinite().all()
    assert torch.equal(guided, cond) == (zero == "difference")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "apg momentum must lie between -1 and 1, got 1.0"),
        ({"norm_threshold": 0.0}, r"apg norm threshold must be above 0 \(inf for none\), got 0.0"),
        ({"norm_threshold": math.nan}, "apg norm threshold .* got nan"),
        ({"eta": math.inf}, "apg eta must be a number"),
    ],
)
def test_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProjectedGuidance(**settings)
