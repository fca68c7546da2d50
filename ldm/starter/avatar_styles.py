"""Which styles of DiceBear are used, and what of them is told, in both languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Words = tuple[str, str] | None  # English, Korean; None: it is not told
_SHIRTS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "white", "black")
_BODIES = ("red", "orange", "yellow", "lime", "green", "turquoise", "sky blue", "blue", "purple", "pink", "grey")


@dataclass(frozen=True)
class Part:
    """One option of a style.

    Attributes:
        option: its name there, such as ``hair``.
        words: its variants that are used, and what to call them.
        chance: that the part is there at all.
    """

    option: str
    words: Mapping[str, Words]
    chance: float = 1.0


@dataclass(frozen=True)
class AvatarStyle:
    """A style of DiceBear and what of it is told.

    Attributes:
        name: of its definition.
        head: what it draws, in both languages; ``{0}`` stands for the words of the first part, where it is in the head.
        parts: options that are told.
        coloured: the colour that is told: its option, and words with a ``{0}``, which stand before the head where they
            end with a space, and among the rest otherwise.
        among: the names of the colours that it may have.
    """

    name: str
    head: tuple[str, str]
    parts: tuple[Part, ...]
    coloured: tuple[str, tuple[str, str]]
    among: tuple[str, ...]


_SMILES: dict[str, Words] = {"smile": ("a smile", "미소"), "frown": ("a frown", "찡그린 입")}
_SHIRT = ("{0} shirt", "{0} 셔츠")
_BEFORE = ("{0} ", "{0} ")
AVATAR_STYLES: tuple[AvatarStyle, ...] = (
    AvatarStyle(
        "personas",
        ("portrait of a person", "사람 초상"),
        (
            Part(
                "hair",
                {
                    "bald": ("a bald head", "민머리"),
                    "beanie": ("a beanie", "비니"),
                    "cap": ("a cap", "모자"),
                    "bobCut": ("a bob cut", "단발머리"),
                    "curly": ("curly hair", "곱슬머리"),
                    "extraLong": ("long hair", "긴 머리"),
                    "mohawk": ("a mohawk", "모히칸 머리"),
                    "pigtails": ("pigtails", "양갈래 머리"),
                    "straightBun": ("a bun", "올림머리"),
                },
            ),
            Part("eyes", {"glasses": ("glasses", "안경"), "sunglasses": ("sunglasses", "선글라스"), "open": None}),
            Part("facialHair", {"beardMustache": ("a beard", "턱수염"), "walrus": ("a moustache", "콧수염")}, 0.3),
            Part("mouth", {**_SMILES, "surprise": ("an open mouth", "벌린 입")}),
        ),
        ("clothing", _SHIRT),
        _SHIRTS,
    ),
    AvatarStyle(
        "open-peeps",
        ("hand-drawn person", "손으로 그린 사람"),
        (
            Part(
                "head",
                {
                    "afro": ("an afro", "아프로 머리"),
                    "bun": ("a bun", "올림머리"),
                    "hatBeanie": ("a beanie", "비니"),
                    "hijab": ("a hijab", "히잡"),
                    "turban": ("a turban", "터번"),
                    "mohawk": ("a mohawk", "모히칸 머리"),
                    "long": ("long hair", "긴 머리"),
                    "noHair1": ("a bald head", "민머리"),
                    "short1": ("short hair", "짧은 머리"),
                    "cornrows": ("cornrows", "땋은 머리"),
                },
            ),
            Part(
                "accessories",
                {
                    "glasses": ("glasses", "안경"),
                    "sunglasses": ("sunglasses", "선글라스"),
                    "eyepatch": ("an eyepatch", "안대"),
                },
                0.5,
            ),
            Part("facialHair", {"full": ("a beard", "턱수염"), "moustache1": ("a moustache", "콧수염")}, 0.25),
            Part(
                "expression",
                {
                    "smile": ("a smile", "미소"),
                    "rage": ("an angry look", "화난 표정"),
                    "eyesClosed": ("closed eyes", "감은 눈"),
                },
            ),
            Part("mask", {"medicalMask": ("a medical mask", "마스크")}, 0.05),
        ),
        ("clothing", _SHIRT),
        _SHIRTS,
    ),
    AvatarStyle(
        "big-smile",
        ("cartoon person", "만화 인물"),
        (
            Part(
                "hair",
                {
                    "bangs": ("bangs", "앞머리"),
                    "braids": ("braids", "땋은 머리"),
                    "bunHair": ("a bun", "올림머리"),
                    "curlyBob": ("curly hair", "곱슬머리"),
                    "mohawk": ("a mohawk", "모히칸 머리"),
                    "shavedHead": ("a shaved head", "민머리"),
                    "shortHair": ("short hair", "짧은 머리"),
                    "straightHair": ("straight hair", "생머리"),
                },
            ),
            Part(
                "accessories",
                {
                    "catEars": ("cat ears", "고양이 귀"),
                    "clownNose": ("a clown nose", "광대 코"),
                    "glasses": ("glasses", "안경"),
                    "mustache": ("a moustache", "콧수염"),
                    "sleepMask": ("a sleep mask", "수면 안대"),
                    "sunglasses": ("sunglasses", "선글라스"),
                },
                0.6,
            ),
            Part(
                "mouth",
                {
                    "teethSmile": ("a big smile", "환한 미소"),
                    "openSad": ("a sad mouth", "슬픈 입"),
                    "braces": ("braces", "치아 교정기"),
                },
            ),
        ),
        ("hair", ("{0}-haired ", "{0} 머리의 ")),
        ("black", "brown", "yellow", "red", "blue", "green", "pink", "purple"),
    ),
    AvatarStyle(
        "critters",
        ("monster", "괴물"),
        (
            Part(
                "top",
                {
                    "horns": ("horns", "뿔"),
                    "antenna": ("an antenna", "더듬이"),
                    "earsPointy": ("pointy ears", "뾰족한 귀"),
                    "earsDroop": ("droopy ears", "늘어진 귀"),
                    "crown": ("a crown", "왕관"),
                    "spikes": ("spikes", "가시"),
                    "sprout": ("a sprout on its head", "머리 위 새싹"),
                },
            ),
            Part(
                "eyes",
                {
                    "mono": ("one eye", "외눈"),
                    "trio": ("three eyes", "세 개의 눈"),
                    "four": ("four eyes", "네 개의 눈"),
                    "round": None,
                    "happy": None,
                },
            ),
            Part("mouth", {**_SMILES, "teeth": ("teeth", "이빨"), "tongue": ("its tongue out", "내민 혀")}),
        ),
        ("body", _BEFORE),
        _BODIES,
    ),
    AvatarStyle(
        "voxel-bot",
        ("voxel robot", "복셀 로봇"),
        (
            Part(
                "top",
                {
                    "antenna": ("an antenna", "안테나"),
                    "dish": ("a dish antenna", "접시 안테나"),
                    "siren": ("a siren", "사이렌"),
                    "fin": ("a fin", "지느러미"),
                },
            ),
            Part(
                "eyes",
                {
                    "visor": ("a visor", "바이저"),
                    "cyclops": ("one eye", "외눈"),
                    "square": ("square eyes", "네모난 눈"),
                    "round": ("round eyes", "둥근 눈"),
                },
            ),
            Part(
                "chest",
                {
                    "heart": ("a heart on its chest", "가슴의 하트"),
                    "screen": ("a screen on its chest", "가슴의 화면"),
                    "buttons": ("buttons on its chest", "가슴의 단추"),
                },
            ),
        ),
        ("body", _BEFORE),
        _BODIES,
    ),
    AvatarStyle(
        "sprouts",
        ("potted {0}", "{0}"),
        (
            Part(
                "plant",
                {
                    "cactus": ("cactus", "선인장"),
                    "tulip": ("tulip", "튤립"),
                    "palm": ("palm", "야자수"),
                    "flower": ("flower", "꽃"),
                    "bush": ("bush", "덤불"),
                    "grass": ("grass plant", "풀"),
                },
            ),
            Part(
                "eyes",
                {
                    "wink": ("a wink", "윙크"),
                    "sleepy": ("sleepy eyes", "졸린 눈"),
                    "angry": ("angry eyes", "화난 눈"),
                    "round": None,
                },
            ),
            Part("mouth", {**_SMILES, "tongue": ("its tongue out", "내민 혀")}),
        ),
        ("pot", ("{0} pot", "{0} 화분")),
        _BODIES,
    ),
)
