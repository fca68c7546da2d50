"""The judge of digits and the distance between sets of features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ldm.data.mnist import MnistConfig, MnistSource
from ldm.errors import UserError
from ldm.evaluate.distance import DistanceReport, frechet_distance, measure
from ldm.evaluate.judge_training import train_judge
from ldm.images import to_signed
from ldm.models.judge import DigitJudge, JudgeConfig

REPOSITORY = Path(__file__).parents[1]
JUDGE = REPOSITORY / "tests" / "data" / "judge.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These shapes are small, and two threads that share a core with others wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> MnistSource:
    return MnistSource(MnistConfig())


@pytest.fixture(scope="module")
def judge() -> DigitJudge:
    return DigitJudge.load(JUDGE)


def frechet_by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as it is written in the paper, with a matrix square root."""
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root)))


def exactly(mean: Tensor, scale: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Samples whose mean and covariance diag(scale^2) are exact, not only expected."""
    x = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return x * scale + mean


def test_the_committed_judge_knows_digits(judge: DigitJudge, digits: MnistSource) -> None:
    # These 5,000 are from the training split, which the judge was trained on; of the test digits it knows 99.73%.
    found = judge.classify(to_signed(digits.images))
    assert (found == digits.labels).float().mean() >= 0.99
    assert JUDGE.stat().st_size < 1_000_000


def test_features_lead_to_the_logits(judge: DigitJudge, digits: MnistSource) -> None:
    images = to_signed(digits.images[:40])
    features = judge.features(images)
    assert features.shape == (40, 128)
    assert (features >= 0).all()
    torch.testing.assert_close(judge.head(features), judge(images))
    torch.testing.assert_close(judge.describe(images, batch_size=7), features, atol=1e-4, rtol=1e-4)
    assert torch.equal(judge.classify(images, batch_size=7), judge(images).argmax(1))


def test_a_padded_digit_is_judged_by_its_centre(judge: DigitJudge, digits: MnistSource) -> None:
    images = to_signed(digits.images[:8])
    torch.testing.assert_close(judge(torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1)), judge(images))


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 16, 28), (1, 28, 28)])
def test_other_pictures_are_refused(judge: DigitJudge, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"expected \(B, 1, H, W\)"):
        judge(torch.zeros(shape))


def test_a_saved_judge_judges_the_same(tmp_path: Path) -> None:
    small = DigitJudge(JudgeConfig(channels=(2, 3, 4), features=5)).eval()
    small.save(tmp_path / "new" / "judge.safetensors")
    again = DigitJudge.load(tmp_path / "new" / "judge.safetensors")
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert again.config == small.config
    assert torch.equal(again(images), small(images))
    assert again.name == "digit judge, 5 features"


def test_other_files_are_not_taken_for_a_judge(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(UserError, match=r"other\.safetensors: no such file"):
        DigitJudge.load(path)
    path.write_bytes(JUDGE.read_bytes()[:5000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        DigitJudge.load(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="expected 'digit judge'"):
        DigitJudge.load(path)


def test_training_repeats_itself() -> None:
    few, state = MnistSource(MnistConfig(limit=500)), torch.get_rng_state()
    first, second, other = (
        train_judge(few.images, few.labels, epochs=1, batch_size=50, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)  # of torch's own generator
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_training_learns(digits: MnistSource) -> None:
    few, unseen = MnistSource(MnistConfig(limit=1000)), slice(1000, 2000)
    trained = train_judge(few.images, few.labels, epochs=4, batch_size=50)
    found = trained.classify(to_signed(digits.images[unseen]))
    assert (found == digits.labels[unseen]).float().mean() > 0.8


def test_what_a_judge_cannot_be_trained_on(digits: MnistSource) -> None:
    with pytest.raises(UserError, match="250 pictures, 1 times, in batches of 50 are 5 steps"):
        train_judge(digits.images[:250], digits.labels[:250], epochs=1, batch_size=50)
    with pytest.raises(UserError, match="labels are 1 to 10, and a judge tells 10 classes apart, 0 to 9"):
        train_judge(digits.images[:500], digits.labels[:500] + 1, epochs=1, batch_size=50)


def test_the_distance_of_gaussians_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_a, mean_b = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    scale_a, scale_b = torch.rand(2, 6, generator=generator, dtype=torch.float64) + 0.1
    a, b = exactly(mean_a, scale_a, 50, generator), exactly(mean_b, scale_b, 70, generator)
    expected = ((mean_a - mean_b) ** 2 + (scale_a - scale_b) ** 2).sum().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 12), count=st.integers(30, 60), shift=st.floats(-5, 5))
def test_the_distance_by_another_route(seed: int, width: int, count: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    a = generator.normal(size=(count, width)) @ generator.normal(size=(width, width))
    b = generator.normal(size=(count + 3, width)) + shift
    there, back = (frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) for x, y in ((a, b), (b, a)))
    assert there == pytest.approx(frechet_by_scipy(a, b), rel=1e-6, abs=1e-6)
    assert back == pytest.approx(there, rel=1e-6, abs=1e-6)


def test_the_distance_of_a_set_to_itself_is_nothing(judge: DigitJudge, digits: MnistSource) -> None:
    features = judge.describe(to_signed(digits.images[:1000]))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-4)


def test_worse_pictures_are_farther_away(judge: DigitJudge, digits: MnistSource) -> None:
    images = to_signed(digits.images)
    noise = torch.randn(1000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    reference, real = judge.describe(images[:1000]), judge.describe(images[1000:2000])
    noisy = [judge.describe((images[2000:3000] + amount * noise).clamp(-1, 1)) for amount in (0.1, 0.3)]
    reports = [measure(features, real, reference, judge.name) for features in noisy]
    assert 1 < reports[0].ratio < reports[1].ratio
    assert reports[0].floor == reports[1].floor == frechet_distance(real, reference)


def test_a_report_names_the_network_and_the_count() -> None:
    text = str(DistanceReport(3.0, 1.5, "digit judge, 128 features", 1000, 10_000))
    assert "digit judge, 128 features" in text
    assert "n = 1,000 against 10,000" in text
    assert "ratio 2.00" in text
    assert "FID" not in text


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5, 4\)"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="N, M >= 2"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="as many of both"):
        measure(torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(6, 3), "some network")
