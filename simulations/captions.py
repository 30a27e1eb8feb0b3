"""What a scene holds, and what is said of it: the wording of the made-up captions.

Every caption is true of its scene, whatever the manner and the words; a site has its own taste
in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The words for each thing. Every word names one thing only, so that a caption stays true.
WORDS = {
    "circle": ("circle", "disc", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star", "five-pointed star"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart", "love heart"),
    "crescent": ("crescent", "half-moon"),
    "arrow": ("arrow", "pointer"),
    "hexagon": ("hexagon", "six-sided shape"),
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "teal": ("teal", "turquoise"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown", "chestnut"),
    "white": ("white", "snow-white"),
    "cream": ("cream", "ivory"),
    "grey": ("grey", "gray"),
    "pale blue": ("pale blue", "light blue"),
    "pale green": ("pale green", "mint"),
    "charcoal": ("charcoal", "dark grey"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
}
NUMBERS = ("", "one", "two", "three", "four")
PLACES = (
    ("in the top left", "at the top", "in the top right"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left", "at the bottom", "in the bottom right"),
)
ROWS = ("in the top row", "in the middle row", "in the bottom row")
COLUMNS = ("in the left column", "in the middle column", "in the right column")


@dataclass(frozen=True, slots=True)
class Group:
    """Shapes that are alike, one in each cell (row * 3 + column) of the grid."""

    shape: str
    colour: str
    size: str
    cells: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is on a picture. No two groups share both shape and colour."""

    background: str
    groups: tuple[Group, ...]


class Taste:
    """One site's odds, and the randomness that follows them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._odds: dict[str, npt.NDArray[np.float64]] = {}

    def odds(self, about: str, options: int) -> npt.NDArray[np.float64]:
        """The site's odds for ``options`` things: partial to a few, closed to none."""
        if about not in self._odds:
            odds = self.rng.dirichlet(np.full(options, 0.4))
            self._odds[about] = 0.8 * odds + 0.2 / options
        return self._odds[about]

    def pick(self, about: str, options: Sequence[str]) -> str:
        """One of ``options``, by the site's odds."""
        return options[int(self.rng.choice(len(options), p=self.odds(about, len(options))))]


class Speaker:
    """One site's manners of speech and its words."""

    def __init__(self, taste: Taste) -> None:
        self.taste = taste

    def captions(self, scene: Scene) -> tuple[str, ...]:
        """Two or three captions, each in another manner."""
        manners = (self._terse, self._sentence, self._relation, self._keywords, self._salient)
        chosen = self.taste.rng.choice(
            len(manners),
            2 + int(self.taste.rng.integers(2)),
            replace=False,
            p=self.taste.odds("manners", len(manners)),
        )
        return tuple(manners[index](scene) for index in chosen)

    def _word(self, thing: str) -> str:
        """The site's word for a thing, mostly the same one."""
        return self.taste.pick(thing, WORDS[thing])

    def _phrase(self, group: Group, size: bool = True) -> str:
        """As in "a small red circle" or "two discs"."""
        number = len(group.cells)
        shape = self._word(group.shape)
        if number > 1:
            shape += "es" if shape[-1] in "sx" else "s"
        words = [self._word(group.size)] * size + [self._word(group.colour), shape]
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article if number == 1 else NUMBERS[number], *words])

    def _terse(self, scene: Scene) -> str:
        said = " and ".join(self._phrase(group) for group in scene.groups)
        return f"{said} on {self._word(scene.background)}" if len(scene.groups) == 1 else said

    def _sentence(self, scene: Scene) -> str:
        parts = [_join(self._phrase(group), _place(group)) for group in scene.groups]
        listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
        background = self._word(scene.background)
        article = "an" if background[0] in "aeiou" else "a"
        opening = self.taste.pick(
            "opening", ("This picture shows", "Here we see", "The image contains")
        )
        return f"{opening} {listed}, on {article} {background} background."

    def _relation(self, scene: Scene) -> str:
        order = self.taste.rng.permutation(len(scene.groups))
        first = scene.groups[order[0]]
        size = bool(self.taste.rng.random() < 0.7)
        for index in order[1:]:
            if where := _relation(first, scene.groups[index]):
                return _join(
                    self._phrase(first, size), where, self._phrase(scene.groups[index], size)
                )
        background = self._word(scene.background)
        return _join(self._phrase(first), _place(first), f"against {background}")

    def _keywords(self, scene: Scene) -> str:
        tags = []
        for group in scene.groups:
            tag = f"{self._word(group.shape)} {self._word(group.colour)} {self._word(group.size)}"
            tags.append(tag if len(group.cells) == 1 else f"{tag} x{len(group.cells)}")
        return ", ".join([*tags, self._word(scene.background)])

    def _salient(self, scene: Scene) -> str:
        """Only the group that covers most, and where it is."""
        group = max(scene.groups, key=lambda group: (group.size == "large", len(group.cells)))
        opening = self.taste.pick("salient", ("mostly", "mainly", "chiefly"))
        return _join(
            opening, self._phrase(group), _place(group), f"on {self._word(scene.background)}"
        )


def _join(*words: str) -> str:
    return " ".join(filter(None, words))


def _place(group: Group) -> str:
    """Where a group is, if a few words can say it."""
    rows = {cell // 3 for cell in group.cells}
    columns = {cell % 3 for cell in group.cells}
    if len(rows) == 1:
        row = rows.pop()
        return PLACES[row][columns.pop()] if len(group.cells) == 1 else ROWS[row]
    return COLUMNS[columns.pop()] if len(columns) == 1 else ""


def _relation(first: Group, second: Group) -> str:
    """How all of ``first`` lies to all of ``second``, by the wider gap; empty when mixed."""
    row, row2 = [cell // 3 for cell in first.cells], [cell // 3 for cell in second.cells]
    column, column2 = [cell % 3 for cell in first.cells], [cell % 3 for cell in second.cells]
    gaps = {
        "to the left of": min(column2) - max(column),
        "to the right of": min(column) - max(column2),
        "above": min(row2) - max(row),
        "below": min(row) - max(row2),
    }
    widest = max(gaps, key=lambda where: gaps[where])
    return widest if gaps[widest] > 0 else ""
