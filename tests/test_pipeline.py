"""The pipeline on tiny models: what a picture depends on, what is refused, and diffusers on the same folder."""

from __future__ import annotations

import pytest
import torch
from tiny_models import MODELS, WINDOW, label_model, pipeline, text_model, unconditional_model
from torch import Tensor

from ldm.diffusion.samplers import SAMPLERS
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.pipeline import Pipeline

# oneDNN chooses its kernels by the size of the batch, and they sum in another order: after five steps pictures in
# -1..1 were seen to differ by 1.4e-5, which is far below the 1/255 that a byte can show.
ANOTHER_BATCH = 1e-4
LONG = "a thick tall one slanted to the right and " * 45  # 405 words
CONDITIONS = {
    "unconditional": [None, None, None, ""],
    "label": [3, "1", None, 7],
    "text": ["two", "a thick one", LONG, None],
}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Pipeline]:
    return {kind: pipeline(make()) for kind, make in MODELS.items()}


class Counted:
    """A network that notes the batch and the context of every call."""

    def __init__(self, pipe: Pipeline) -> None:
        self.batches: list[int] = []
        self.contexts: list[Tensor | None] = []
        self.handle = pipe.model.net.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, net: object, inputs: tuple[Tensor, Tensor], named: dict[str, Tensor]) -> None:
        self.batches.append(len(inputs[0]))
        self.contexts.append(named.get("context"))

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


# ------------------------------------------------------------ what a picture depends on


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpm++_2m"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_picture_does_not_depend_on_its_batch(pipes: dict[str, Pipeline], kind: str, sampler: str) -> None:
    conditions, seeds = CONDITIONS[kind], [5, 6, 900, 2**64 - 1]
    together = pipes[kind].generate(conditions, seeds, steps=5, sampler=sampler)
    parted = pipes[kind].generate(conditions, seeds, steps=5, sampler=sampler, batch_size=3)
    alone = [pipes[kind].generate([c], [s], steps=5, sampler=sampler) for c, s in zip(conditions, seeds, strict=True)]
    assert together.isfinite().all()
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=ANOTHER_BATCH)
    torch.testing.assert_close(together, parted, rtol=0, atol=ANOTHER_BATCH)


class Pointwise(torch.nn.Module):
    """A network without sums, whose rounding cannot depend on the batch."""

    config = None

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        return torch.sin(3 * x + context[:, 0, :1, None, None]) + t[:, None, None, None] / 1000


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch_by_a_bit(sampler: str) -> None:
    model = label_model()
    model.net = Pointwise()
    pipe, seeds = pipeline(model), [5, 6, 900]
    together = pipe.generate([3, 1, None], seeds, steps=6, sampler=sampler)
    for k, condition in enumerate([3, 1, None]):
        assert torch.equal(pipe.generate([condition], seeds[k : k + 1], steps=6, sampler=sampler)[0], together[k])


def test_the_same_call_gives_the_same_bits(pipes: dict[str, Pipeline]) -> None:
    first = pipes["label"].generate([1, 2], [0, 1], steps=3, sampler="ddpm")
    torch.manual_seed(12345)  # global generators have no say
    assert torch.equal(first, pipes["label"].generate([1, 2], [0, 1], steps=3, sampler="ddpm"))


def test_seed_and_condition_matter(pipes: dict[str, Pipeline]) -> None:
    base = pipes["label"].generate([1], [0])
    assert (base - pipes["label"].generate([1], [1])).abs().max() > 0.1
    assert (base - pipes["label"].generate([2], [0])).abs().max() > 1e-3


def test_calling_draws_images_with_consecutive_seeds(pipes: dict[str, Pipeline]) -> None:
    images = pipes["text"](["two", "three"], seed=4)
    assert [(i.mode, i.size) for i in images] == [("L", (32, 32))] * 2
    direct = pipes["text"].generate(["three"], [5])
    shown = torch.tensor(list(images[1].tobytes())).reshape(32, 32)
    assert ((direct[0, 0] + 1) * 127.5 - shown).abs().max() <= 0.51
    assert len(pipes["label"](7)) == len(pipes["unconditional"](None)) == len(pipes["text"]("two")) == 1


def test_three_channels_make_rgb() -> None:
    (image,) = pipeline(text_model(channels=3))("two", height=16, width=24)
    assert (image.mode, image.size) == ("RGB", (24, 16))


def test_defaults_of_the_model_and_of_the_sampler(pipes: dict[str, Pipeline]) -> None:
    assert pipes["label"].settle(Drawing()).model_dump(include={"sampler", "steps", "guidance", "height"}) == {
        "sampler": "dpm++_2m",
        "steps": 3,
        "guidance": 2.0,
        "height": 8,
    }
    # the model's number of steps belongs to the model's sampler
    assert pipes["label"].settle(Drawing(sampler="heun")).steps == 20


def test_progress_is_told_after_every_move_of_every_batch(pipes: dict[str, Pipeline]) -> None:
    told: list[tuple[int, int, tuple[int, ...]]] = []
    pipes["label"].generate(
        [1, 2, 3],
        [0, 1, 2],
        batch_size=2,
        steps=4,
        progress=lambda done, steps, step: told.append((done, steps, tuple(step.x0.shape))),
    )
    assert told == [(k, 4, (1, 1, 8, 8)) for _ in range(3) for k in (1, 2, 3, 4)]


# ------------------------------------------------------------------- prompts and guidance


def test_guidance_one_calls_the_network_once_per_move(pipes: dict[str, Pipeline]) -> None:
    with Counted(pipes["text"]) as plain:
        unguided = pipes["text"].generate(["two"], [0], guidance=1)
    with Counted(pipes["text"]) as guided:
        pipes["text"].generate(["two"], [0], guidance=1.5)
    assert (plain.batches, guided.batches) == ([1, 1, 1], [2, 2, 2])
    near = pipes["text"].generate(["two"], [0], guidance=1 + 1e-6)
    torch.testing.assert_close(unguided, near, rtol=0, atol=ANOTHER_BATCH)


def test_an_empty_prompt_draws_unconditionally(pipes: dict[str, Pipeline]) -> None:
    for kind in ("text", "label"):
        empty = pipes[kind].generate(["", None], [3, 3])
        torch.testing.assert_close(empty[0], empty[1], rtol=0, atol=ANOTHER_BATCH)
        # both halves of guidance are the same, so its scale has no effect
        unguided = pipes[kind].generate([None], [3], guidance=1)
        torch.testing.assert_close(empty[:1], unguided, rtol=0, atol=ANOTHER_BATCH)


def test_a_prompt_of_400_words_is_read_to_its_end(pipes: dict[str, Pipeline]) -> None:
    with Counted(pipes["text"]) as calls:
        long = pipes["text"].generate([LONG], [0])
    (context,) = {tuple(c.shape) for c in calls.contexts if c is not None}
    assert context[0] == 2  # both halves of guidance, equally long
    assert context[1] % WINDOW == 0
    assert context[1] // WINDOW >= 400 / (WINDOW - 2)
    other_end = pipes["text"].generate([LONG.strip() + " four"], [0])
    assert (long - other_end).abs().max() > 1e-6


def test_a_long_negative_prompt_lengthens_the_prompt(pipes: dict[str, Pipeline]) -> None:
    with Counted(pipes["text"]) as calls:
        pipes["text"].generate(["two", LONG], [0, 1], negative="a thick tall one " * 10)
    assert calls.batches == [2] * 6  # one batch for each length
    assert all(c is not None and c.shape[1] > WINDOW for c in calls.contexts)


def test_negative_prompts_take_the_place_of_the_empty_one(pipes: dict[str, Pipeline]) -> None:
    pipe = pipes["text"]
    with Counted(pipe) as calls:
        away = pipe.generate(["two"], [0], negative="three")
    assert calls.contexts[0] is not None
    expected = pipe.model.conditioner.encode(["three", "two"]).tokens
    torch.testing.assert_close(calls.contexts[0], expected)
    assert (away - pipe.generate(["two"], [0])).abs().max() > 1e-4
    assert torch.equal(pipe.generate(["two"], [0], negative=""), pipe.generate(["two"], [0]))
    # away from what is asked for is nowhere
    torch.testing.assert_close(
        pipe.generate(["two"], [0], negative="two"),
        pipe.generate(["two"], [0], guidance=1),
        rtol=0,
        atol=ANOTHER_BATCH,
    )


def test_guidance_in_an_interval_costs_two_rows_only_there(pipes: dict[str, Pipeline]) -> None:
    with Counted(pipes["label"]) as calls:
        pipes["label"].generate([3], [0], sampler="ddim", steps=4, guidance=3, guidance_interval=(0.2, 0.6))
    assert calls.batches == [1, 2, 2, 1]  # at t = 750, 500, 250 and 0 of 1000
    everywhere = pipes["label"].generate([3], [0], guidance_interval=(0, 1))
    assert torch.equal(everywhere, pipes["label"].generate([3], [0]))


def test_away_from_the_label_zero(pipes: dict[str, Pipeline]) -> None:
    with Counted(pipes["label"]) as calls:
        pipes["label"].generate([3], [0], negative=0)
    assert calls.contexts[0] is not None
    assert torch.equal(calls.contexts[0], pipes["label"].model.conditioner.encode([0, 3]).tokens)
    with pytest.raises(UserError, match=r"negative 0 would do nothing: .* at scale 1 there is none"):
        pipes["label"].generate([3], [0], negative=0, guidance=1)


def test_eta_reaches_ddim(pipes: dict[str, Pipeline]) -> None:
    pipe = pipes["unconditional"]

    def draw(**options: object) -> Tensor:
        return pipe.generate([None], [0], steps=6, **options)

    assert torch.equal(draw(sampler="ddim", eta=0), draw(sampler="ddim"))
    ancestral = draw(sampler="ddim", eta=1)
    assert (ancestral - draw(sampler="ddim")).abs().max() > 0.01
    # eta = 1 is ddpm with the variance of the posterior (Song et al. 2020, section 4.1)
    torch.testing.assert_close(ancestral, draw(sampler="ddpm"), rtol=0, atol=1e-3)
    half = draw(sampler="ddim trailing", eta=0.5)
    assert (half - draw(sampler="ddim trailing", eta=0)).abs().max() > 0.01


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("kind", "condition", "options", "message"),
    [
        ("text", "two", {"width": 33}, r"width 33 is not a multiple of 4, .* 32 is the nearest"),
        ("text", "two", {"height": 1}, r"height 1 is not a multiple of 4, .* 4 is the nearest"),
        ("text", "two", {"steps": 0}, "steps: .*greater than or equal to 1, got 0"),
        ("text", "two", {"steps": 1001}, "between 1 and 1000"),
        ("text", "two", {"sampler": "dimm"}, "unknown sampler 'dimm'; did you mean 'ddim'"),
        ("text", "two", {"spacing": "trailin"}, "unknown spacing 'trailin'; did you mean 'trailing'"),
        ("text", "two", {"guidence": 2}, "guidence: unknown key; did you mean 'guidance'"),
        ("text", "two", {"guidance_interval": (0.5, 0.2)}, "guidance interval"),
        ("text", "two", {"eta": 0.5, "sampler": "euler"}, "eta is for the sampler ddim"),
        ("text", "two", {"eta": 1.5}, "eta: .*less than or equal to 1, got 1.5"),
        ("text", "two", {"guidance": 1, "negative": "three"}, "negative 'three' would do nothing"),
        ("label", 10, {}, "a label from 0 to 9, or nothing; got 10"),
        ("label", -1, {}, "a label from 0 to 9, or nothing; got -1"),
        ("label", "seven", {}, "a label from 0 to 9, or nothing; got 'seven'"),
        ("unconditional", "seven", {}, "unconditional and cannot be asked for 'seven'"),
        ("unconditional", None, {"guidance": 2}, "guidance 2.0 needs a conditional model"),
        ("unconditional", None, {"negative": "seven"}, "negative 'seven' would do nothing"),
    ],
)
def test_mistakes(
    pipes: dict[str, Pipeline], kind: str, condition: str | int | None, options: dict[str, object], message: str
) -> None:
    with Counted(pipes[kind]) as calls, pytest.raises(UserError, match=message):
        pipes[kind].generate([condition], [0], **options)
    assert not calls.batches  # found before the work


@pytest.mark.parametrize(
    ("conditions", "seeds", "message"),
    [
        ([1, 2], [0], "2 conditions but 1 seeds"),
        ([], [], "nothing to draw"),
        ([1], [-1], "seed -1 is not between"),
        ([1], [2**64], "seed 18446744073709551616 is not between"),
    ],
)
def test_requests_that_fit_no_picture(
    pipes: dict[str, Pipeline], conditions: list[str | int | None], seeds: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pipes["label"].generate(conditions, seeds)


def test_uniform_noise_refuses_samplers_that_add_gaussian_noise() -> None:
    model = unconditional_model()
    model.process = model.process.model_copy(update={"kind": "flow", "noise": "uniform"})
    model.prediction = "x0"
    pipe = pipeline(model)
    assert pipe.generate([None], [0], steps=5, sampler="ddim").isfinite().all()
    for options in ({"sampler": "euler_a"}, {"sampler": "ddim", "eta": 0.5}):
        with pytest.raises(UserError, match="adds Gaussian noise"):
            pipe.generate([None], [0], steps=5, **options)
