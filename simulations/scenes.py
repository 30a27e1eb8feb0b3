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
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from client.institution.pairs import METADATA, Pair, write_pairs
from protocol.errors import UsageError
from protocol.files import writing
from simulations.captions import Group, Scene, Speaker, Taste

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
        self.taste = Taste(rng)
        self.speaker = Speaker(self.taste)
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
        captions = self.speaker.captions(scene)
        return Pair(file_name, captions, split, self.site), self.draw(scene)

    def scene(self) -> Scene:
        odds = self.taste.odds("pattern", len(PATTERNS))
        pattern = PATTERNS[int(self.rng.choice(len(PATTERNS), p=odds))]
        cells = [int(cell) for cell in self.rng.permutation(9)]
        groups: list[Group] = []
        for number in pattern:
            mine, cells = tuple(sorted(cells[:number])), cells[number:]
            group = self.group(mine)
            while _clash(group, groups):
                group = self.group(mine)
            groups.append(group)
        return Scene(self.taste.pick("background", tuple(BACKGROUNDS)), tuple(groups))

    def group(self, cells: tuple[int, ...]) -> Group:
        return Group(
            self.taste.pick("shape", tuple(SHAPES)),
            self.taste.pick("colour", tuple(COLOURS)),
            self.taste.pick("size", tuple(RADII)),
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


def _clash(group: Group, others: Sequence[Group]) -> bool:
    return any((group.shape, group.colour) == (other.shape, other.colour) for other in others)


def _rgb(colours: dict[str, tuple[int, int, int]], name: str, lighter: int) -> tuple[int, ...]:
    return tuple(min(255, max(0, value + lighter)) for value in colours[name])
