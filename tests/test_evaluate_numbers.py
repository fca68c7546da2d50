"""Distances, manifolds, classes and matches by independent formulas, in float64, on the same features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.data.mnist import MnistConfig, MnistSource
from ldm.evaluate.distance import frechet_distance, kernel_distance
from ldm.evaluate.evaluation import Cell, Evaluation
from ldm.evaluate.judged import judge_classes
from ldm.evaluate.manifold import compare_manifolds, radii
from ldm.evaluate.matching import match
from ldm.evaluate.metric import Metric
from ldm.evaluate.report import tables
from ldm.evaluate.sets import Measured
from ldm.evaluate.settings import EvaluateConfig
from ldm.evaluate.sweep import front
from ldm.images import to_signed
from ldm.models.judge import DigitJudge

JUDGE = Path(__file__).parent / "data" / "judge.safetensors"


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Without a covariance: trace((A B)^(1/2)) is the sum of the singular values of the centred features' product."""
    x, y = a - a.mean(0), b - b.mean(0)
    n, m = len(x) - 1, len(y) - 1
    mixed = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt(n * m)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() / n + (y**2).sum() / m - 2 * mixed)


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate, sum by sum, as in Binkowski et al. 2018, equation 4."""

    def k(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    m = len(a)
    own = [(k(x, x).sum() - np.trace(k(x, x))) / (m * (m - 1)) for x in (a, b)]
    return float(sum(own) - 2 * k(a, b).mean())


def sets(name: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    normal = random.normal
    if name == "judge":
        digits = MnistSource(MnistConfig(limit=400))
        features = DigitJudge.load(JUDGE).describe(to_signed(digits.images)).numpy()
        return features[:150], features[150:]
    if name == "many":
        return normal(size=(600, 16)) @ normal(size=(16, 16)), normal(size=(500, 16)) + 0.3
    if name == "fewer than numbers":
        return normal(size=(20, 128)), normal(size=(30, 128)) * 1.2
    if name == "nearly singular":
        low = normal(size=(300, 4)) @ normal(size=(4, 64))
        return low[:150] + 1e-7 * normal(size=(150, 64)), 1.1 * low[150:] + 1e-7 * normal(size=(150, 64))
    if name == "dead numbers":
        keep = np.arange(64) < 40
        return np.maximum(normal(size=(200, 64)), 0) * keep, np.maximum(normal(size=(90, 64)) + 0.1, 0) * keep
    assert name == "far from 0"
    return normal(size=(200, 32)) + 1000, normal(size=(200, 32)) * 1.5 + 1000


SETS = ("judge", "many", "fewer than numbers", "nearly singular", "dead numbers", "far from 0")


@pytest.mark.parametrize("name", SETS)
def test_frechet_distances_agree_with_a_formula_without_covariances(name: str) -> None:
    a, b = sets(name)
    found = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(frechet(a.astype(np.float64), b.astype(np.float64)), rel=1e-4)


def test_frechet_distances_do_not_depend_on_threads() -> None:
    a, b = (torch.from_numpy(x) for x in sets("fewer than numbers"))
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(frechet_distance(a, b))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert len(found) == 1


@pytest.mark.parametrize("name", SETS)
def test_kernel_distances_agree_with_their_definition(name: str) -> None:
    a, b = sets(name)
    found = kernel_distance(torch.from_numpy(a), torch.from_numpy(b), subsets=7, size=15, seed=5)
    generator = torch.Generator().manual_seed(5)
    wanted = []
    for _ in range(7):
        chosen = [torch.randperm(len(x), generator=generator)[:15].numpy() for x in (a, b)]
        wanted.append(kernel(*(x[rows].astype(np.float64) for x, rows in zip((a, b), chosen, strict=True))))
    assert found.mean == pytest.approx(np.mean(wanted), rel=1e-6)
    assert found.spread == pytest.approx(np.std(wanted), rel=1e-6)
    assert (found.subsets, found.size) == (7, 15)


def test_the_kernel_distance_of_whole_sets_is_computed_once() -> None:
    a, b = (torch.from_numpy(x[:150]) for x in sets("many"))
    found = kernel_distance(a, b)
    assert (found.subsets, found.size, found.spread) == (1, 150, 0.0)
    assert found.mean == pytest.approx(kernel(a.numpy(), b.numpy()), rel=1e-9)


def test_sets_of_one_kind_have_a_kernel_distance_of_about_nothing() -> None:
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    near, far = kernel_distance(x[:500], x[500:]).mean, kernel_distance(x[:500], x[500:] + 1).mean
    assert abs(near) < 0.02 < far


def by_brute_force(drawn: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float, float, float]:
    def apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))

    def reach(x: np.ndarray) -> np.ndarray:
        return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(apart(x, x))])

    distances, own, other = apart(drawn, real), reach(drawn), reach(real)
    inside = distances <= other[None]
    precision = np.mean([row.any() for row in inside])
    recall = np.mean([(distances[:, j] <= own).any() for j in range(len(real))])
    return float(precision), float(recall), inside.sum() / (k * len(drawn)), float(inside.any(0).mean())


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    width=st.integers(1, 6),
    counts=st.tuples(st.integers(7, 40), st.integers(7, 40)),
    k=st.integers(1, 6),
    shift=st.floats(-2, 2),
)
def test_manifolds_by_brute_force(seed: int, width: int, counts: tuple[int, int], k: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    drawn, real = random.normal(size=(counts[0], width)) + shift, random.normal(size=(counts[1], width))
    found = compare_manifolds(torch.from_numpy(drawn), torch.from_numpy(real), k)
    assert found == pytest.approx(by_brute_force(drawn, real, k))
    reach = radii(torch.from_numpy(real), k)
    assert compare_manifolds(torch.from_numpy(drawn), torch.from_numpy(real), k, reach) == found


def test_manifolds_of_more_than_a_block() -> None:
    random = np.random.default_rng(0)
    drawn, real = random.normal(size=(1100, 2)) * 0.5, random.normal(size=(1300, 2))
    found = compare_manifolds(torch.from_numpy(drawn), torch.from_numpy(real), 3)
    assert found == pytest.approx(by_brute_force(drawn, real, 3))


def test_what_manifolds_tell() -> None:
    def points(count: int, seed: int) -> torch.Tensor:
        return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))

    real, alike = points(400, 0), compare_manifolds(points(400, 1), points(400, 0))
    assert min(alike) > 0.85
    narrow = compare_manifolds(0.1 * points(400, 2), real)  # good pictures of few kinds
    assert narrow.precision == 1
    assert narrow.density > 1
    assert max(narrow.recall, narrow.coverage) < 0.2
    assert max(compare_manifolds(points(400, 3) + 50, real)) == 0  # other pictures altogether


def test_too_few_pictures_have_no_neighbours() -> None:
    with pytest.raises(ValueError, match="5 neighbours in a set of 5: it takes 1 to 4"):
        compare_manifolds(torch.zeros(5, 3), torch.zeros(9, 3))


def test_classes_are_counted() -> None:
    found, reference = torch.tensor([0, 0, 1, 1, 1, 0]), torch.tensor([0, 1, 2, 2])
    told = judge_classes(found, [0, 0, 1, 0, None, None], reference, classes=4)
    assert told.accuracy == 0.75
    assert told.by_class == (pytest.approx(2 / 3), 1.0, None, None)
    assert told.shares == (0.5, 0.5, 0, 0)
    assert told.reference_shares == (0.25, 0.25, 0.5, 0)
    assert told.coverage == pytest.approx(2 / 3)  # the third class is missing; the fourth is nowhere
    assert told.difference == pytest.approx(0.5)
    assert judge_classes(found, [None] * 6, reference, 4).accuracy is None


def test_matches_by_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"caption {k}" for k in range(9)]
    texts = dict(zip(names, torch.randn(9, 6, generator=generator), strict=True))
    captions = [names[int(k)] for k in torch.randint(9, (40,), generator=generator)]
    own = torch.stack([texts[caption] for caption in captions])
    pictures = 3 * (own + 0.8 * torch.randn(40, 6, generator=generator))
    similar = np.array([[float(F.cosine_similarity(p, t, dim=0)) for t in texts.values()] for p in pictures])
    ranks = [int((row > row[names.index(c)]).sum()) for row, c in zip(similar, captions, strict=True)]
    mine = [row[names.index(c)] for row, c in zip(similar, captions, strict=True)]
    found = match(pictures, captions, texts)
    assert found.score == pytest.approx(100 * np.maximum(mine, 0).mean(), rel=1e-5)
    assert found.first == np.mean([rank < 1 for rank in ranks])
    assert found.five == np.mean([rank < 5 for rank in ranks])
    assert 0 < found.first < found.five < 1
    assert found.captions == 9


def test_captions_that_a_clip_cannot_tell_apart_share_the_place() -> None:
    texts = {
        name: torch.tensor([1.0, 0.0]) for name in ("one", "two", "three", "four", "five", "six", "seven", "eight")
    }
    found = match(torch.tensor([[2.0, 1.0]]), ["three"], texts)
    assert (found.first, found.five) == (1 / 8, 5 / 8)


@settings(deadline=None)
@given(points=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_no_setting_of_the_front_is_beaten_and_all_others_are(points: list[tuple[int, int]]) -> None:
    chosen = front(points)
    assert [points[k][0] for k in chosen] == sorted(points[k][0] for k in chosen)

    def better(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return (a[0] < b[0] and a[1] <= b[1]) or (a[0] <= b[0] and a[1] < b[1])

    for k, point in enumerate(points):
        assert (k in chosen) != any(better(other, point) for other in points)


def test_a_metric_names_its_network_and_its_numbers_of_pictures() -> None:
    metric = Metric("kernel distance", 0.01234, "lower", "judge 12ab", 100, 5000, 0.002, "3 subsets of 50")
    assert str(metric) == "kernel distance (judge 12ab, n = 100 against 5,000, 3 subsets of 50): 0.01234 ± 0.002"
    assert "FID" not in str(metric)


@pytest.mark.parametrize(
    ("values", "spread", "best"), [((3, 1, 2), None, 1), ((3, 1, 2), 1.5, None), ((2, 2), None, None)]
)
def test_a_setting_is_best_where_the_difference_is_more_than_noise(
    values: tuple[float, ...], spread: float | None, best: int | None
) -> None:
    config = EvaluateConfig.checked({"data": {"source": "mnist"}, "features": ["judge:a"], "count": 10})
    metrics = [Metric("kernel distance", value, "lower", "judge", 10, 10, spread) for value in values]
    none = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    cells = tuple(Cell("ddim", k, 1.0, 0.1, 10**9, Measured((metric,), {}), none) for k, metric in enumerate(metrics))
    found = Evaluation(config, (28, 28), "digits", 10, "label", Measured((), {}), "digits", cells, None)
    assert tables(found)[0].best == [None, best]
