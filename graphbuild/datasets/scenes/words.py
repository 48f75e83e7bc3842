"""The vocabulary and grammar of `scenes`: which things there are, and how a caption says them.

A scene has one thing, its colour, its size, its place and its background, drawn independently. Each has several names,
so that captions are related in degrees: two of the same picture may share no word, two of different pictures many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OBJECTS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "round spot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "three-cornered shape"),
    "star": ("star", "five-pointed star"),
    "heart": ("heart", "valentine heart"),
    "house": ("house", "cottage", "home"),
    "tree": ("tree", "fir tree", "pine tree"),
    "fish": ("fish", "swimming fish"),
    "car": ("car", "automobile", "motor car"),
    "cup": ("cup", "mug", "coffee cup"),
    "flower": ("flower", "blossom", "bloom"),
    "boat": ("boat", "sailboat", "sailing boat"),
    "moon": ("moon", "crescent", "crescent moon"),
    "arrow": ("arrow", "arrow sign"),
    "umbrella": ("umbrella", "parasol"),
    "mushroom": ("mushroom", "toadstool"),
}
"""Label of a thing, and the words for it; the label's number is its place here."""

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden", "lemon-yellow"),
    "green": ("green", "emerald", "leaf-green"),
    "blue": ("blue", "cobalt", "royal blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "brown": ("brown", "chestnut", "chocolate-brown"),
    "white": ("white", "ivory", "chalk-white"),
    "black": ("black", "jet-black", "ebony"),
}

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "sky": ("in a cloudy sky", "against a pale daytime sky", "among drifting clouds"),
    "meadow": ("on fresh grass", "in a meadow", "on a lawn"),
    "sand": ("on the sand", "on a sandy beach", "in the desert"),
    "water": ("over calm water", "on the sea", "above rippling waves"),
    "night": ("on a starry night", "against the night sky", "in the dark, among faint lights"),
    "bricks": ("in front of a brick wall", "against brickwork", "on a wall of bricks"),
    "checks": ("on a checkered floor", "over a chessboard pattern", "on a checked cloth"),
    "stripes": ("on a striped background", "in front of stripes", "over a striped cloth"),
    "snow": ("in the snow", "on a snowy field", "in a snowstorm"),
    "dots": ("on a dotted background", "over polka dots", "in front of a spotted cloth"),
}

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "medium": ("",),
    "large": ("large", "big", "huge"),
}

PLACES: dict[tuple[int, int], tuple[str, ...]] = {
    (0, 0): ("in the top left corner", "near the top left", "up on the left"),
    (0, 1): ("at the top", "near the upper edge"),
    (0, 2): ("in the top right corner", "near the top right", "up on the right"),
    (1, 0): ("on the left", "at the left side"),
    (1, 1): ("in the middle", "at the centre"),
    (1, 2): ("on the right", "at the right side"),
    (2, 0): ("in the bottom left corner", "near the bottom left", "down on the left"),
    (2, 1): ("at the bottom", "near the lower edge"),
    (2, 2): ("in the bottom right corner", "near the bottom right", "down on the right"),
}
"""(row, column) of a 3 x 3 grid, from the top left, and the words for it."""

_SENTENCES = (
    "{thing} {place}, {background}",
    "{thing} {background}, {place}",
    "{background}, {thing} {place}",
    "{place}, {thing} {background}",
    "there is {thing} {place}, {background}",
    "a picture of {thing} {background}, {place}",
    "a drawing of {thing} {place}, {background}",
    "{background} there is {thing}, {place}",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a picture shows: one label a factor."""

    object: str
    attribute: str
    background: str
    size: str
    place: tuple[int, int]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw every factor uniformly, independent of the others."""
    return Scene(
        object=_pick(rng, tuple(OBJECTS)),
        attribute=_pick(rng, tuple(COLOURS)),
        background=_pick(rng, tuple(BACKGROUNDS)),
        size=_pick(rng, tuple(SIZES)),
        place=(int(rng.integers(3)), int(rng.integers(3))),
    )


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Return a caption that names the thing, its colour, its size unless it is medium, its place and its background."""
    words = (_pick(rng, SIZES[scene.size]), _pick(rng, COLOURS[scene.attribute]), _pick(rng, OBJECTS[scene.object]))
    phrase = " ".join(word for word in words if word)
    article = "an" if phrase[0] in "aeiou" else "a"
    return _pick(rng, _SENTENCES).format(
        thing=f"{article} {phrase}",
        place=_pick(rng, PLACES[scene.place]),
        background=_pick(rng, BACKGROUNDS[scene.background]),
    )


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
