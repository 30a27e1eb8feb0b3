"""Made-up pictures with true captions, for demos and tests that may use nobody's data.

A scene is a plain background with one to four shapes on an invisible 3 x 3 grid, drawn as a PNG
of 64 x 64 pixels. Shapes that are alike in shape, colour and size form a group ("three small
red circles"). Each picture gets two or three captions in different manners: terse, a full
sentence, a relation ("a blue square to the left of a green star"), keywords, or only what
catches the eye. Every caption is true of its picture.

Each picture belongs to a site, an invented institution. Sites differ as real ones do: each has
its own taste in shapes, colours, backgrounds, numbers and manners of speech, and its own words
(disc or circle, crimson or red), yet nothing is quite unknown anywhere. More than half of the
scenes are an earlier one with a single thing changed, so a search has to look closely.

One seed gives the same bytes each time (with one version of NumPy and Pillow). The randomness
makes variety and protects nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from client.institution.pairs import METADATA, Pair, write_pairs, writing
from protocol.errors import UsageError

Array = npt.NDArray[np.float64]

SITES = (
    "harbour", "museum", "clinic", "library", "nursery", "bakery", "observatory", "theatre",
    "garden", "workshop", "school", "archive", "railway", "market", "lighthouse", "studio",
)  # fmt: skip
SIDE = 64
COLOURS = {
    "red": (212, 36, 40),
    "orange": (242, 130, 20),
    "yellow": (244, 206, 24),
    "green": (38, 152, 58),
    "teal": (18, 164, 168),
    "blue": (38, 78, 220),
    "purple": (126, 46, 170),
    "pink": (246, 128, 190),
    "brown": (124, 74, 34),
}
BACKGROUNDS = {
    "white": (252, 252, 252),
    "cream": (250, 238, 208),
    "grey": (188, 188, 188),
    "pale blue": (200, 224, 246),
    "pale green": (208, 240, 212),
    "charcoal": (48, 50, 58),
}
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
# How many of each: (2, 1) is two alike and another one.
PATTERNS = (
    (1,), (2,), (3,), (4,), (1, 1), (2, 1), (3, 1), (2, 2), (1, 1, 1), (2, 1, 1), (1, 1, 1, 1),
)  # fmt: skip
RADII = {"small": 5.0, "large": 9.0}
SPLIT_SHARES = (0.75, 0.85)


def _arc(start: float, stop: float, radius: float = 1.0, x: float = 0.0) -> Array:
    angles = np.radians(np.linspace(start, stop, 33))
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _regular(corners: int, start: float, inner: float = 1.0) -> Array:
    """A regular polygon, or a star where every second corner lies at the radius ``inner``."""
    angles = np.radians(start + np.arange(corners) * 360 / corners)
    radii = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], axis=1) / 17


def _points(*coordinates: tuple[float, float]) -> Array:
    return np.array(coordinates, np.float64)


# Outlines in the unit circle, y downwards.
SHAPES: dict[str, Array] = {
    "circle": _arc(0, 360),
    "square": _regular(4, 45),
    "triangle": _regular(3, -90),
    "star": _regular(10, -90, 0.42),
    "cross": _points(
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
        (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ),
    "ring": np.concatenate([_arc(45, 405), _arc(405, 45, 0.55)]),
    "heart": _heart(),
    "crescent": np.concatenate([_arc(60, 300), _arc(-93, -267, 0.867, 0.55)]),
    "arrow": _points(
        (-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)
    ),
    "hexagon": _regular(6, 0),
}  # fmt: skip


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


def write_scenes(
    root: Path,
    count: int,
    sites: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes ``count`` captioned scenes, dealt evenly among ``sites``, as a folder of pairs.

    ``progress`` is told the number of pictures written so far. Raises UsageError for numbers
    that cannot work or a folder that already holds data, StorageError when the disk refuses.
    """
    if not 1 <= sites <= count:
        raise UsageError(
            f"expected at least one site and a scene for each, got {sites} sites, {count} scenes",
            "ask for more scenes or fewer sites",
        )
    if seed < 0:
        raise UsageError(f"expected a seed of 0 or more, got {seed}", "choose another seed")
    if (root / METADATA).exists():
        raise UsageError(f"{root} already holds {METADATA}", "choose an empty folder")
    makers = [
        _Maker(
            _site_name(index), -(-(count - index) // sites), np.random.default_rng([seed, index])
        )
        for index in range(sites)
    ]
    pairs = []
    with writing(root):
        (root / "images").mkdir(parents=True, exist_ok=True)
        for index in range(count):
            file_name = f"images/{index:06}.png"
            pair, image = makers[index % sites].make(file_name)
            image.save(root / file_name)
            pairs.append(pair)
            if progress is not None:
                progress(index + 1)
    write_pairs(root, pairs, None)


def _site_name(index: int) -> str:
    again, name = divmod(index, len(SITES))
    return SITES[name] if again == 0 else f"{SITES[name]}-{again + 1}"


class _Maker:
    """One site: its taste, its words, and what it has drawn so far."""

    def __init__(self, site: str, count: int, rng: np.random.Generator) -> None:
        self.site = site
        self.rng = rng
        self.tastes: dict[object, Array] = {}
        order = rng.permutation(count) / count
        self.splits = ["train", "val", "test"], np.searchsorted(SPLIT_SHARES, order, "right")
        self.earlier: dict[str, list[Scene]] = {"train": [], "val": [], "test": []}
        self.made = 0

    def make(self, file_name: str) -> tuple[Pair, Image.Image]:
        names, which = self.splits
        split = names[which[self.made]]
        self.made += 1
        earlier = self.earlier[split]
        if earlier and self.rng.random() < 0.6:
            scene = self.changed(earlier[int(self.rng.integers(len(earlier)))])
        else:
            scene = self.scene()
        earlier.append(scene)
        manners = (self.terse, self.sentence, self.relation, self.keywords, self.salient)
        chosen = self.rng.choice(
            len(manners), 2 + int(self.rng.integers(2)), replace=False, p=self.taste("manners", 5)
        )
        captions = tuple(manners[index](scene) for index in chosen)
        return Pair(file_name, captions, split, self.site), self.draw(scene)

    def taste(self, about: object, options: int) -> Array:
        """The site's odds for ``options`` things: partial to a few, closed to none."""
        if about not in self.tastes:
            odds = self.rng.dirichlet(np.full(options, 0.4))
            self.tastes[about] = 0.8 * odds + 0.2 / options
        return self.tastes[about]

    def pick(self, about: str, options: Sequence[str]) -> str:
        return options[int(self.rng.choice(len(options), p=self.taste(about, len(options))))]

    def word(self, thing: str) -> str:
        return self.pick(thing, WORDS[thing])

    # --- scenes

    def scene(self) -> Scene:
        pattern = PATTERNS[
            int(self.rng.choice(len(PATTERNS), p=self.taste("pattern", len(PATTERNS))))
        ]
        cells = [int(cell) for cell in self.rng.permutation(9)]
        groups: list[Group] = []
        for number in pattern:
            mine, cells = tuple(sorted(cells[:number])), cells[number:]
            group = self.group(mine)
            while _clash(group, groups):
                group = self.group(mine)
            groups.append(group)
        return Scene(self.pick("background", tuple(BACKGROUNDS)), tuple(groups))

    def group(self, cells: tuple[int, ...]) -> Group:
        return Group(
            self.pick("shape", tuple(SHAPES)),
            self.pick("colour", tuple(COLOURS)),
            self.pick("size", tuple(RADII)),
            cells,
        )

    def changed(self, scene: Scene) -> Scene:
        """The same scene but for one thing: a trait of a group, its place, or the background."""
        what = ("shape", "colour", "size", "cells", "background")[int(self.rng.integers(5))]
        if what == "background":
            others = [name for name in BACKGROUNDS if name != scene.background]
            return replace(scene, background=others[int(self.rng.integers(len(others)))])
        index = int(self.rng.integers(len(scene.groups)))
        old, rest = scene.groups[index], scene.groups[:index] + scene.groups[index + 1 :]
        new = old
        while new == old or _clash(new, rest):
            if what == "cells":
                free = sorted(set(range(9)) - {cell for group in rest for cell in group.cells})
                moved = self.rng.choice(free, len(old.cells), replace=False)
                new = replace(old, cells=tuple(sorted(int(cell) for cell in moved)))
            else:
                other = self.group(old.cells)
                new = replace(old, **{what: getattr(other, what)})
        groups = (*scene.groups[:index], new, *scene.groups[index + 1 :])
        return replace(scene, groups=groups)

    def draw(self, scene: Scene) -> Image.Image:
        fine = 3  # drawn this much larger, then averaged down for smooth edges
        tint = int(self.rng.integers(-9, 10))
        image = Image.new(
            "RGB", (SIDE * fine, SIDE * fine), _rgb(BACKGROUNDS, scene.background, tint)
        )
        pen = ImageDraw.Draw(image)
        for group in scene.groups:
            for cell in group.cells:
                middle = (np.array([cell % 3, cell // 3]) + 0.5) * SIDE / 3
                middle += self.rng.uniform(-1, 1, 2)
                radius = RADII[group.size] * self.rng.uniform(0.93, 1.05)
                angle = np.radians(self.rng.uniform(-18, 18))
                turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
                outline = (SHAPES[group.shape] @ turn * radius + middle) * fine
                fill = _rgb(COLOURS, group.colour, int(self.rng.integers(-9, 10)))
                pen.polygon(outline.ravel().tolist(), fill=fill, outline=fill)
        return image.reduce(fine)

    # --- captions

    def phrase(self, group: Group, size: bool = True) -> str:
        """As in "a small red circle" or "two discs"."""
        number = len(group.cells)
        shape = self.word(group.shape)
        if number > 1:
            shape += "es" if shape[-1] in "sx" else "s"
        words = [self.word(group.size)] * size + [self.word(group.colour), shape]
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article if number == 1 else NUMBERS[number], *words])

    def terse(self, scene: Scene) -> str:
        said = " and ".join(self.phrase(group) for group in scene.groups)
        return f"{said} on {self.word(scene.background)}" if len(scene.groups) == 1 else said

    def sentence(self, scene: Scene) -> str:
        parts = [_join(self.phrase(group), _place(group)) for group in scene.groups]
        listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
        background = self.word(scene.background)
        article = "an" if background[0] in "aeiou" else "a"
        opening = self.pick("opening", ("This picture shows", "Here we see", "The image contains"))
        return f"{opening} {listed}, on {article} {background} background."

    def relation(self, scene: Scene) -> str:
        order = self.rng.permutation(len(scene.groups))
        first = scene.groups[order[0]]
        size = bool(self.rng.random() < 0.7)
        for index in order[1:]:
            if where := _relation(first, scene.groups[index]):
                return _join(
                    self.phrase(first, size), where, self.phrase(scene.groups[index], size)
                )
        background = self.word(scene.background)
        return _join(self.phrase(first), _place(first), f"against {background}")

    def keywords(self, scene: Scene) -> str:
        tags = []
        for group in scene.groups:
            tag = f"{self.word(group.shape)} {self.word(group.colour)} {self.word(group.size)}"
            tags.append(tag if len(group.cells) == 1 else f"{tag} x{len(group.cells)}")
        return ", ".join([*tags, self.word(scene.background)])

    def salient(self, scene: Scene) -> str:
        """Only the group that covers most, and where it is."""
        group = max(scene.groups, key=lambda group: (group.size == "large", len(group.cells)))
        opening = self.pick("salient", ("mostly", "mainly", "chiefly"))
        return _join(
            opening, self.phrase(group), _place(group), f"on {self.word(scene.background)}"
        )


def _clash(group: Group, others: Sequence[Group]) -> bool:
    return any((group.shape, group.colour) == (other.shape, other.colour) for other in others)


def _rgb(colours: dict[str, tuple[int, int, int]], name: str, lighter: int) -> tuple[int, ...]:
    return tuple(min(255, max(0, value + lighter)) for value in colours[name])


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
