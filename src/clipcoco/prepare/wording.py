"""How scenes are put into words: captions as different people would write them, questions, and false captions.

What chance decides comes from a generator seeded by the scene. Captions of validation tell a scene from nearly all
others, so that a recall is about the model; those of training are also as people search: without sizes, of one thing
alone, in lower case.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random

from clipcoco.data.changed_words import with_words
from clipcoco.prepare.composition import Scene, Thing
from clipcoco.prepare.drawing import COLOURS, SHAPES

SIZE_WORDS = {"large": ("big", "large"), "small": ("small", "little", "tiny")}
COLOUR_WORDS = {"purple": ("violet",), "pink": ("rose",), "black": ("dark",), "red": ("crimson",)}
SHAPE_WORDS = {"circle": ("disc",), "square": ("box",), "moon": ("crescent",), "cross": ("plus",), "ring": ("hoop",)}
_USUAL = {other: word for words in (COLOUR_WORDS, SHAPE_WORDS) for word, others in words.items() for other in others}
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath", "underneath"),
}
REVERSED = {"left": "right", "above": "below", "over": "under", "top": "bottom"}
REVERSED |= {other: word for word, other in REVERSED.items()} | {"beneath": "above", "underneath": "over"}
KINDS = ("colours swapped", "shapes swapped", "relation reversed", "colour replaced", "shape replaced")  # of falsehood
LOOSE_SHARE = 0.4  # of the scenes of two things have a caption that leaves open how the things stand
OTHER_WORD = 0.2  # of the colours and shapes in plain captions have one


def _any_of(*words: Iterable[str]) -> str:
    return "|".join(sorted(itertools.chain(*words)))


_MENTION = re.compile(
    rf"\b(?P<colour>{_any_of(COLOURS, *COLOUR_WORDS.values())}) (?P<shape>{_any_of(SHAPES, *SHAPE_WORDS.values())})\b"
)
_RELATION = re.compile(rf"\b({_any_of(REVERSED)})\b", re.IGNORECASE)

Fact = tuple[Thing, str, Thing]  # one thing, its relation, and the other
Naming = Callable[[Thing], str]
Sentence = Callable[[Naming], str]


def captions(scene: Scene) -> list[str]:
    """Five differing captions, as different people would word them.

    Of validation each names every shape and its colour, and says all there is to know; but of two things one leaves out
    a size, and sometimes one leaves open how they stand. Of training one says all, and the others are plain: two of a
    single thing, and two of how or where they stand.
    """
    rng = Random(f"captions {scene}")
    told = _told(scene, rng)
    if scene.split == "val":
        return [text for text, _ in told]
    plain: dict[str, None] = {}
    while len(plain) < 2:
        plain[_single(scene.things[len(plain) % len(scene.things)], rng)] = None
    if scene.place:
        plain |= dict.fromkeys(f"{_plain(rng)(scene.things[0])} {where}" for where in _on_sheet(scene))
    else:
        plain |= dict.fromkeys(_pair(fact, rng) for fact in facts(scene))
    return [*plain, *(text for text, whole in told if whole)][:5]


def false_captions(scene: Scene, caption: str) -> Iterator[tuple[str, str]]:
    """What was changed, and `caption`, which is true of `scene`, with that change: then it is false, and else the same.

    Colours and shapes are swapped between two things, of which one may not be named, or of one thing replaced by one
    that no thing has; relations are reversed from above to below and from left to right. At most one of each of KINDS,
    and none where the change might leave the caption true. Always the same ones.
    """
    rng, there = Random(f"false {caption}"), {(thing.colour, thing.shape) for thing in scene.things}
    found = list(_MENTION.finditer(caption))
    parts = ("colour", "shape"), (COLOURS, SHAPES)
    for part in parts[0]:
        if len(found) == 2:
            one, other = found
            new = with_words(caption, [(*one.span(part), other[part]), (*other.span(part), one[part])])
            if not kinds_told(new) <= there:  # else only their places are exchanged
                yield f"{part}s swapped", new
        elif found:
            others = [getattr(thing, part) for thing in scene.things]
            changed = [with_words(caption, [(*found[0].span(part), other)]) for other in others]
            if wrong := [new for new in changed if not kinds_told(new) <= there]:
                yield f"{part}s swapped", rng.choice(wrong)
    if relations := [(*word.span(), REVERSED[word[0].lower()]) for word in _RELATION.finditer(caption)]:
        yield "relation reversed", with_words(caption, relations)
    for part, usual in zip(*parts, strict=True) if found else ():
        absent = [word for word in usual if word not in {getattr(thing, part) for thing in scene.things}]
        yield f"{part} replaced", with_words(caption, [(*rng.choice(found).span(part), rng.choice(absent))])


def kinds_told(caption: str) -> set[tuple[str, str]]:
    """Colour and shape of each thing that a caption names, by their usual words."""
    told = (found.group("colour", "shape") for found in _MENTION.finditer(caption))
    return {(_USUAL.get(colour, colour), _USUAL.get(shape, shape)) for colour, shape in told}


def _told(scene: Scene, rng: Random) -> list[tuple[str, bool]]:
    """Five sentences about all things, and whether each says all there is to know."""
    full, loose = (_one if scene.place else _two)(scene, rng)
    chosen, whole, unsized = rng.sample(full, 5), [True] * 5, None
    if loose:
        unsized, whole[3] = rng.choice(scene.things), False
        if rng.random() < LOOSE_SHARE:
            chosen[4], whole[4] = rng.choice(loose), False
    texts = [sentence(_naming(rng, unsized if i == 3 else None)) for i, sentence in enumerate(chosen)]
    order = list(range(5))
    rng.shuffle(order)
    return [(f"{texts[i][0].upper()}{texts[i][1:]}.", whole[i]) for i in order]


def _pair(fact: Fact, rng: Random) -> str:
    one, relation, other = fact
    name = _plain(rng)
    opening = rng.choice(("", "", "", "there is ", "a picture of "))
    return f"{opening}{name(one)} {rng.choice(RELATIONS[relation])} {name(other)}"


def _single(thing: Thing, rng: Random) -> str:
    name = _plain(rng)(thing)
    bare = name.partition(" ")[2]
    sized = f"a {rng.choice(SIZE_WORDS[thing.size])} {bare}"
    return rng.choice((name, name, name, bare, bare, f"the {bare}", f"there is {name}", f"a picture of {name}", sized))


def facts(scene: Scene) -> list[Fact]:
    """How any two of its things stand, told from either side."""
    found: list[Fact] = []
    for row in scene.rows:
        if len(row) == 2:
            found += [(row[0], "left", row[1]), (row[1], "right", row[0])]
    if len(scene.rows) == 2:
        for high in scene.rows[0]:
            for low in scene.rows[1]:
                found += [(high, "above", low), (low, "below", high)]
    return found


def _plain(rng: Random) -> Naming:
    """How a person names things who searches: no size, now and then another word."""

    def word(usual: str, others: Mapping[str, tuple[str, ...]]) -> str:
        return rng.choice(others[usual]) if usual in others and rng.random() < OTHER_WORD else usual

    def name(thing: Thing) -> str:
        words = [word(thing.colour, COLOUR_WORDS), word(thing.shape, SHAPE_WORDS)]
        return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])

    return name


def _naming(rng: Random, unsized: Thing | None = None) -> Naming:
    """How one person names things: the same word for the same size, none for `unsized`."""
    sizes = {size: rng.choice(words) for size, words in SIZE_WORDS.items()}

    def name(thing: Thing) -> str:
        words = [thing.colour, thing.shape] if thing == unsized else [sizes[thing.size], thing.colour, thing.shape]
        return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])

    return name


def _two(scene: Scene, rng: Random) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences that tell how two things stand, and sentences that leave it open."""
    first, second = scene.things
    beside = len(scene.rows) == 1

    def related() -> tuple[Thing, str, Thing]:
        """One thing, where it is, and the other, told from either side."""
        if rng.random() < 0.5:
            return first, rng.choice(RELATIONS["left" if beside else "above"]), second
        return second, rng.choice(RELATIONS["right" if beside else "below"]), first

    def plain(opening: str, verb: str = "") -> Sentence:
        one, where, other = related()
        return lambda name: f"{opening}{name(one)}{verb} {where} {name(other)}"

    def fronted() -> Sentence:
        one, where, other = related()
        return lambda name: f"{where} {name(other)} there is {name(one)}"

    places = ("on the left", "on the right") if beside else ("at the top", "at the bottom")
    full: list[Sentence] = [
        plain(""),
        plain("there is "),
        plain(rng.choice(("a picture of ", "a drawing of ", "an image of ", "we see "))),
        plain("", rng.choice((" is", " sits"))),
        fronted(),
        lambda name: f"{name(first)} {places[0]} and {name(second)} {places[1]}",
    ]
    one, other = rng.sample((first, second), 2)
    join = rng.choice(("next to", "beside")) if beside else rng.choice(("and", "with"))
    loose: list[Sentence] = [
        lambda name: f"{name(one)} {join} {name(other)}",
        lambda name: f"there are two shapes, {name(one)} and {name(other)}",
    ]
    return full, loose


def _one(scene: Scene, rng: Random) -> tuple[list[Sentence], list[Sentence]]:
    """The same of a single thing on its sheet; others might be where one leaves that open."""
    (thing,) = scene.things
    place, paper = _on_sheet(scene)
    opening, verb = rng.choice(("there is ", "we see ")), rng.choice(("is", "sits"))
    picture = rng.choice(("a picture", "a drawing", "an image"))
    full: list[Sentence] = [
        lambda name: f"{name(thing)} {place} {paper}",
        lambda name: f"{opening}{name(thing)} {place} {paper}",
        lambda name: f"{picture} of {name(thing)} {place} {paper}",
        lambda name: f"{name(thing)} {verb} {place} {paper}",
        lambda name: f"{paper} there is {name(thing)} {place}",
        lambda name: f"{place} {paper} there is {name(thing)}",
    ]
    return full, []


def _on_sheet(scene: Scene) -> tuple[str, str]:
    preposition = {"left": "on", "right": "on", "middle": "in"}.get(scene.place, "at")
    return f"{preposition} the {scene.place}", f"on {scene.paper} paper"
