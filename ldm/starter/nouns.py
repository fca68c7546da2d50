"""Names of emoji as noun phrases with the right article, in English and Korean.

Labels are made for lists: ``woman: curly hair``, ``flag: China``, ``locked with pen``, ``warning``. In a sentence they
read badly, and a model learns the sentence it is shown.
"""

from __future__ import annotations

import re

_COLON = {  # what "person: ..." becomes
    "blond hair": "with blond hair",
    "beard": "with a beard",
    "red hair": "with red hair",
    "curly hair": "with curly hair",
    "white hair": "with white hair",
    "bald": "with a bald head",
    "facing right": "facing right",
}
_SIGN_GROUPS = {"transport-sign", "warning", "zodiac", "math", "currency", "av-symbol", "gender"}
_ALREADY = r"(sign|symbol|button|room|bars|asterisk|mark)$"
_NAMES = {  # label: (noun, article)
    "star-struck": ("star-struck face", "a"),
    "rolling on the floor laughing": ("face rolling on the floor laughing", "a"),
    "hundred points": ("hundred points symbol", "a"),
    "dizzy": ("dizzy stars", ""),
    "dashing away": ("cloud of dust", "a"),
    "ZZZ": ("zzz sleep symbol", "a"),
    "index pointing up": ("index finger pointing up", "an"),
    "index pointing at the viewer": ("index finger pointing at the viewer", "an"),
    "backhand index pointing left": ("hand pointing left", "a"),
    "backhand index pointing right": ("hand pointing right", "a"),
    "backhand index pointing up": ("hand pointing up", "a"),
    "backhand index pointing down": ("hand pointing down", "a"),
    "thumbs up": ("thumbs up", "a"),
    "thumbs down": ("thumbs down", "a"),
    "palms up together": ("palms up together", ""),
    "flower playing cards": ("flower playing cards", ""),
    "Santa Claus": ("Santa Claus", ""),
    "Mrs. Claus": ("Mrs. Claus", ""),
    "Mx Claus": ("Mx Claus", ""),
    "breast-feeding": ("person breast-feeding a baby", "a"),
    "horse racing": ("jockey on a racing horse", "a"),
    "cooking": ("egg in a frying pan", "an"),
    "sauropod": ("sauropod dinosaur", "a"),
    "mate": ("mate drink", "a"),
    "mount fuji": ("Mount Fuji", ""),
    "camping": ("campsite", "a"),
    "hindu temple": ("Hindu temple", "a"),
    "shinto shrine": ("Shinto shrine", "a"),
    "kaaba": ("Kaaba", "the"),
    "Tokyo tower": ("Tokyo Tower", ""),
    "Statue of Liberty": ("Statue of Liberty", "the"),
    "foggy": ("foggy city", "a"),
    "night with stars": ("starry night", "a"),
    "wedding": ("wedding chapel", "a"),
    "milky way": ("Milky Way", "the"),
    "building construction": ("building under construction", "a"),
    "construction": ("construction barrier", "a"),
    "light rail": ("light rail train", "a"),
    "high voltage": ("lightning bolt", "a"),
    "hourglass done": ("finished hourglass", "a"),
    "hourglass not done": ("running hourglass", "a"),
    "tennis": ("tennis ball", "a"),
    "bowling": ("bowling ball and pins", "a"),
    "field hockey": ("field hockey stick and ball", "a"),
    "ice hockey": ("ice hockey stick and puck", "an"),
    "lacrosse": ("lacrosse stick and ball", "a"),
    "ping pong": ("ping pong paddle and ball", "a"),
    "badminton": ("badminton racket and shuttlecock", "a"),
    "cricket game": ("cricket bat and ball", "a"),
    "american football": ("American football", "an"),
    "pool 8 ball": ("billiard ball", "a"),
    "performing arts": ("theater masks", ""),
    "locked": ("closed padlock", "a"),
    "unlocked": ("open padlock", "an"),
    "locked with pen": ("padlock with a pen", "a"),
    "locked with key": ("padlock with a key", "a"),
    "dna": ("DNA strand", "a"),
    "dvd": ("DVD", "a"),
    "speaker low volume": ("speaker at low volume", "a"),
    "speaker medium volume": ("speaker at medium volume", "a"),
    "speaker high volume": ("speaker at high volume", "a"),
    "men’s room": ("men's room sign", "a"),
    "women’s room": ("women's room sign", "a"),
    "restroom": ("restroom sign", "a"),
    "place of worship": ("place of worship sign", "a"),
    "om": ("om symbol", "an"),
    "yin yang": ("yin yang symbol", "a"),
    "copyright": ("copyright sign", "a"),
    "registered": ("registered trademark sign", "a"),
    "trade mark": ("trademark sign", "a"),
    "information": ("information sign", "an"),
    "circled M": ("circled letter M", "a"),
    "kiss": ("couple kissing", "a"),
    "woman’s clothes": ("woman's clothes", ""),
    "hot springs": ("hot springs symbol", "a"),
}
_MASS = {
    "coral",
    "spaghetti",
    "bacon",
    "bread",
    "butter",
    "salt",
    "garlic",
    "broccoli",
    "popcorn",
    "rice",
    "milk",
    "ice",
    "honey",
    "fog",
    "soap",
    "yarn",
    "thread",
    "sake",
    "oden",
    "sushi",
    "custard",
    "falafel",
    "fondue",
    "flatbread",
    "fire",
    "wood",
    "luggage",
    "polish",
    "food",
    "liquid",
    "poo",
    "money",
    "infinity",
    "ginger",
    "cream",
    "corn",
    "dango",
    "news",
    "paper",
    "wear",
}
_COUNTED = {"soft ice cream", "ice cream", "piece of paper", "shaved ice", "ginger root", "bubble tea"}
_PLURAL_HEADS = {"people", "men", "women", "french fries", "scissors", "glasses", "grapes", "skis"}
_SINGULAR_S = {
    "bus",
    "cactus",
    "octopus",
    "walrus",
    "glass",
    "dress",
    "compass",
    "cross",
    "lotus",
    "hibiscus",
    "abacus",
    "tennis",
    "minibus",
    "trolleybus",
    "asparagus",
    "rhinoceros",
    "hippopotamus",
    "gas",
    "canvas",
    "lens",
    "moss",
    "mess",
    "box",
    "class",
    "virus",
    "chess",
    "princess",
    "fleur-de-lis",
    "cyclops",
    "platypus",
    "bass",
    "headdress",
    "fortress",
    "mattress",
    "campus",
    "circus",
    "torus",
    "nucleus",
    "papyrus",
    "mantis",
    "ibis",
    "iris",
}
_PREPOSITIONS = re.compile(
    r" (?:with|of|in|on|behind|at|and|without|showing|pointing|over|fluttering|facing|under|from|holding|"
    r"having|playing|lifting|savoring|hugging|wrestling|rowing|wearing|feeding|curving|tilted|increasing|decreasing|"
    r"to|for|between|breaking) "
)
_NUMBERS = r"(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"


def english_noun(label: str, subgroup: str) -> tuple[str, str]:
    """A label of emojibase as (noun phrase, article)."""
    if label in _NAMES:
        return _NAMES[label]
    if match := re.fullmatch(_NUMBERS + r"(?: o’clock|-thirty)", label):
        tail = " o'clock" if "clock" in label else "-thirty"
        return f"clock showing {match[1]}{tail}", "a"
    noun = _without_colon(label).replace("’", "'").replace("&", "and").replace("gesturing NO", "gesturing no")
    noun = re.sub(r"[“”]| \(blood type\)", "", noun)
    if noun.startswith("input "):
        noun += " button"
    if subgroup in _SIGN_GROUPS and not re.search(_ALREADY, noun):
        noun += " zodiac sign" if subgroup == "zodiac" else " sign"
    return noun, article_of(noun)


def _without_colon(label: str) -> str:
    head, colon, tail = label.partition(": ")
    if not colon:
        return label
    if head == "flag":
        return f"{tail} flag"
    if head == "keycap":
        return f"keycap {tail}"
    if head in ("family", "kiss", "couple with heart"):
        members = tail.split(", ")
        who = ", ".join(members[:-1]) + f" and {members[-1]}"
        return {"family": f"family of {who}", "kiss": f"{who} kissing"}.get(head, f"{who} with heart")
    return f"{head} {_COLON.get(tail, tail)}"


def article_of(noun: str) -> str:
    """The article that a noun phrase takes where it is named for the first time: ``a``, ``an``, or none."""
    head = _PREPOSITIONS.split(noun, maxsplit=1)[0]
    last = head.split()[-1]
    if noun not in _COUNTED and (last in _MASS or last in _PLURAL_HEADS or head.split()[0] in _PLURAL_HEADS):
        return ""
    plural = last.endswith("s") and not last.endswith(("ss", "us", "'s")) and last not in _SINGULAR_S
    if plural and not last.isupper():
        return ""
    return "an" if _begins_with_vowel_sound(noun.split()[0]) else "a"


def _begins_with_vowel_sound(word: str) -> bool:
    if word.isupper() and len(word) <= 3 and word not in ("NEW", "COOL", "FREE", "END", "TOP", "SOON", "BACK", "ON"):
        return word[0] in "AEFHILMNORSX"  # spelt: an SOS button, an ID
    lower = word.lower()
    if lower.startswith(("x-ray", "hour", "heir", "honest")):
        return True
    if lower.startswith(("uni", "eu", "one", "ewe", "uk", "use", "ut", "ur")) and not lower.startswith(("unin", "urn")):
        return False
    return lower[0] in "aeiou" or lower[:2] in ("8 ", "11", "18")


def with_article(noun: str, article: str) -> str:
    """``a`` and ``dog`` as ``a dog``."""
    return f"{article} {noun}" if article else noun


def korean_noun(label: str) -> str:
    """A Korean label as a noun phrase: what follows the colon describes what stands before it."""
    plain = label.replace('"', "").replace("“", "").replace("”", "")
    head, colon, tail = plain.partition(": ")
    if not colon:
        return plain
    head = head.replace("키 캡", "키캡")
    return f"{head} {tail}" if head == "키캡" else f"{tail.replace(',', '')} {head}"
