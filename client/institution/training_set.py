"""What training sees of an institution's pairs: pictures and captions, or their features.

Both kinds answer the same two questions, in two steps each: what is drawn for a batch (random,
from the generator that is passed in), and how the model embeds what was drawn (not random, so
that it may be done twice, see ``client.institution.gradient_cache``).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.institution.augmentation.image import ImageAugmentation
from client.institution.augmentation.synonyms import Synonyms
from client.institution.augmentation.text import TextAugmentation
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers

Floats = npt.NDArray[np.float32]
Drawn = tuple[torch.Tensor, ...]
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Captions:
    """What is said of each item, and which items show one thing.

    ``public`` are texts that belong to no item here; ``groups`` is empty where there are none.
    Captions that differ in case or in surrounding space count as one.
    """

    of_items: tuple[tuple[str, ...], ...]
    groups: tuple[str | None, ...] = ()
    public: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.of_items)

    def numbered(self) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """The distinct texts; each item's as indices, int64 [n, most], padded with -1; and the
        public ones' indices, int64 [p].
        """
        numbers: dict[str, int] = {}
        spelt: list[str] = []

        def number(text: str) -> int:
            found = numbers.setdefault(plain(text), len(numbers))
            if found == len(spelt):
                spelt.append(text)
            return found

        rows = [[number(text) for text in texts] for texts in self.of_items]
        most = max(map(len, rows), default=0)
        padded = [row + [-1] * (most - len(row)) for row in rows]
        public = torch.tensor([number(text) for text in self.public], dtype=torch.int64)
        items = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), most)
        return spelt, items, public

    def group_numbers(self) -> torch.Tensor:
        """int64 [n], equal where items show one thing, -1 where nothing is known."""
        numbers: dict[str, int] = {}
        groups = self.groups or (None,) * len(self)
        return torch.tensor(
            [-1 if one is None else numbers.setdefault(one, len(numbers)) for one in groups],
            dtype=torch.int64,
        )


class TrainingSet(ABC):
    """Items with captions, of either kind."""

    def __init__(self, captions: Captions) -> None:
        self.captions = captions
        self.texts, self.numbers, self.public = captions.numbered()
        self.groups = captions.group_numbers()

    def __len__(self) -> int:
        return len(self.captions)

    @abstractmethod
    def prepare(self, model: TwoTowers, settings: TrainingSettings) -> None:
        """Gets ready for batches of ``model`` under ``settings``."""

    @abstractmethod
    def draw_images(self, items: torch.Tensor, generator: torch.Generator) -> Drawn:
        """What a batch sees of the pictures of ``items``, int64 [b]."""

    @abstractmethod
    def draw_texts(self, numbers: torch.Tensor, generator: torch.Generator) -> Drawn:
        """What a batch sees of the texts ``numbers``, int64 [b]."""

    @abstractmethod
    def embed_images(self, model: TwoTowers, drawn: Drawn) -> torch.Tensor:
        """Embeds drawn pictures, float32 [b, dim]."""

    @abstractmethod
    def embed_texts(self, model: TwoTowers, drawn: Drawn) -> torch.Tensor:
        """Embeds drawn texts, float32 [b, dim]."""

    @abstractmethod
    def image_vectors(self, model: TwoTowers) -> Floats:
        """Embeds every picture as it is, float32 [n, dim]."""

    @abstractmethod
    def text_vectors(self, model: TwoTowers, texts: Sequence[str]) -> Floats:
        """Embeds texts that stand among the captions, float32 [t, dim]."""


class PictureSet(TrainingSet):
    """Pictures uint8 [n, 3, s, s], seen by the whole model."""

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        captions: Captions,
        synonyms: Synonyms | None = None,
    ) -> None:
        if len(pixels) != len(captions):
            raise ValueError(f"{len(pixels)} pictures but {len(captions)} captions")
        super().__init__(captions)
        self._pixels = pixels
        self._synonyms = synonyms

    def prepare(self, model: TwoTowers, settings: TrainingSettings) -> None:
        """Tokenises captions, unless they are to change from batch to batch."""
        self._augment = ImageAugmentation(settings.image_augmentation)
        self._tokenizer = model.tokenizer
        self._change: TextAugmentation | None = None
        if settings.text_augmentation == "none":
            self._ids, self._mask = model.tokenizer(self.texts)
        else:
            synonyms = self._synonyms or Synonyms.shipped()
            self._change = TextAugmentation(settings.text_augmentation, synonyms)

    def draw_images(self, items: torch.Tensor, generator: torch.Generator) -> Drawn:
        """Augmented pixels, uint8 [b, 3, s, s]."""
        return (self._augment(torch.from_numpy(self._pixels[items.numpy()]), generator),)

    def draw_texts(self, numbers: torch.Tensor, generator: torch.Generator) -> Drawn:
        """Token ids and mask, int64 [b, t], t the longest of these."""
        if self._change is None:
            width = int(self._mask[numbers].sum(1).max())
            return self._ids[numbers, :width], self._mask[numbers, :width]
        return self._tokenizer([self._change(self.texts[n], generator) for n in numbers.tolist()])

    def embed_images(self, model: TwoTowers, drawn: Drawn) -> torch.Tensor:
        """Embeds drawn pictures, float32 [b, dim]."""
        return model.encode_image(*drawn)

    def embed_texts(self, model: TwoTowers, drawn: Drawn) -> torch.Tensor:
        """Embeds drawn texts, float32 [b, dim]."""
        return model.encode_text(*drawn)

    def image_vectors(self, model: TwoTowers) -> Floats:
        """Embeds every picture as it is, float32 [n, dim]."""
        # Not by an Embedder: its export takes longer than a model that still learns is worth.
        vectors = np.empty((len(self._pixels), model.settings.dim), np.float32)
        for start in range(0, len(vectors), _BATCH):
            part = slice(start, start + _BATCH)
            with torch.inference_mode():
                vectors[part] = model.encode_image(torch.tensor(self._pixels[part])).numpy()
        return vectors

    def text_vectors(self, model: TwoTowers, texts: Sequence[str]) -> Floats:
        """Embeds texts, float32 [t, dim]."""
        vectors = np.empty((len(texts), model.settings.dim), np.float32)
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            with torch.inference_mode():
                vectors[part] = model.encode_text(*model.tokenizer(texts[part])).numpy()
        return vectors


class FeatureSet(TrainingSet):
    """Features of frozen backbones: float32 [n, views, w] of pictures, [t, w'] of the texts."""

    def __init__(self, images: Floats, texts: Floats, captions: Captions) -> None:
        super().__init__(captions)
        if len(images) != len(captions) or len(texts) != len(self.texts):
            raise ValueError(
                f"{len(images)} pictures and {len(texts)} texts for {len(captions)} items with "
                f"{len(self.texts)} texts"
            )
        self._images, self._texts = torch.from_numpy(images), torch.from_numpy(texts)
        self._places = {plain(text): i for i, text in enumerate(self.texts)}

    def prepare(self, model: TwoTowers, settings: TrainingSettings) -> None:
        """Takes note of how much of each feature a batch shall not see."""
        self._image_dropout, self._text_dropout = settings.image_dropout, settings.text_dropout

    def draw_images(self, items: torch.Tensor, generator: torch.Generator) -> Drawn:
        """One view of each, float32 [b, w], with dropout."""
        views = self._images.shape[1]
        if views == 1:
            return (_drop(self._images[items, 0], self._image_dropout, generator),)
        view = torch.randint(views, (len(items),), generator=generator)
        return (_drop(self._images[items, view], self._image_dropout, generator),)

    def draw_texts(self, numbers: torch.Tensor, generator: torch.Generator) -> Drawn:
        """Features float32 [b, w'], with dropout."""
        return (_drop(self._texts[numbers], self._text_dropout, generator),)

    def embed_images(self, model: TwoTowers, drawn: Drawn) -> torch.Tensor:
        """Projects drawn features, float32 [b, dim]."""
        return model.project_image(*drawn)

    def embed_texts(self, model: TwoTowers, drawn: Drawn) -> torch.Tensor:
        """Projects drawn features, float32 [b, dim]."""
        return model.project_text(*drawn)

    def image_vectors(self, model: TwoTowers) -> Floats:
        """Embeds every picture as it is, float32 [n, dim]."""
        with torch.inference_mode():
            vectors: Floats = model.project_image(self._images[:, 0]).numpy()
        return vectors

    def text_vectors(self, model: TwoTowers, texts: Sequence[str]) -> Floats:
        """Embeds texts that stand among the captions, float32 [t, dim]."""
        rows = [self._places[plain(text)] for text in texts]
        with torch.inference_mode():
            vectors: Floats = model.project_text(self._texts[rows]).numpy()
        return vectors

    def plain_images(self) -> Floats:
        """The features of the pictures as they are, float32 [n, w]."""
        plain_ones: Floats = self._images[:, 0].numpy()
        return plain_ones


def union(sets: Sequence[TrainingSet]) -> TrainingSet:
    """All items of several sets of one kind, one set after the other; the first's public texts."""
    captions = Captions(
        tuple(texts for one in sets for texts in one.captions.of_items),
        tuple(
            # What two institutions call by one name need not be one thing.
            None if group is None else f"{number}/{group}"
            for number, one in enumerate(sets)
            for group in one.captions.groups or (None,) * len(one)
        ),
        sets[0].captions.public,
    )
    pictures = [one for one in sets if isinstance(one, PictureSet)]
    if len(pictures) == len(sets):
        return PictureSet(np.concatenate([one._pixels for one in pictures]), captions)
    featured = [one for one in sets if isinstance(one, FeatureSet)]
    rows = {place: one._texts[row] for one in featured for place, row in one._places.items()}
    texts, _, _ = captions.numbered()
    said = torch.stack([rows[plain(text)] for text in texts]).numpy()
    return FeatureSet(torch.cat([one._images for one in featured]).numpy(), said, captions)


def _drop(features: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    if not share:
        return features
    kept = torch.rand(features.shape, generator=generator) >= share
    return features * kept / (1 - share)


def plain(text: str) -> str:
    """What two captions have in common that differ in case or surrounding space alone."""
    return text.strip().casefold()
