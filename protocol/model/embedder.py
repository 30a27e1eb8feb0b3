"""Captions and pictures to vectors, with a model that no longer learns."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from protocol.model.accelerated import Features
from protocol.model.release import Release
from protocol.model.runtime.tower import Precision
from protocol.model.towers import TwoTowers

Floats = npt.NDArray[np.float32]


class Embedder:
    """Embeds with a release, or with a model that has none yet (``release_id`` is then empty).

    Inner products of its vectors are cosines: every vector has length one. ``precision`` "int8"
    is smaller and faster for pretrained encoders; the two sides of a search may differ in it.
    """

    def __init__(self, source: Release | TwoTowers, precision: Precision = "float32") -> None:
        self.release_id = source.release_id if isinstance(source, Release) else ""
        self.model = source.load() if isinstance(source, Release) else source
        self.image_size = self.model.settings.image_size
        self.dim = self.model.settings.dim
        self.precision = precision
        self._features = Features(self.model, precision)

    @property
    def fit(self) -> tuple[int, float | None, str]:
        """How pictures become squares: side, crop and resampling, as ``load_pixels`` takes them."""
        settings = self.model.settings
        return settings.image_size, settings.image_crop or None, settings.image_resample

    def texts(self, texts: Sequence[str], batch: int = 256) -> Floats:
        """Embeds n texts as float32 [n, dim]."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        # Padded batch by batch, so that one long text does not slow all the others.
        for start in range(0, len(texts), batch):
            part = slice(start, start + batch)
            features = self._features.texts(*self.model.tokenizer(texts[part]))
            with torch.inference_mode():
                vectors[part] = self.model.project_text(torch.from_numpy(features)).numpy()
        return vectors

    def pixels(self, pixels: npt.NDArray[np.uint8], batch: int = 256) -> Floats:
        """Embeds pictures, uint8 [n, 3, image_size, image_size], as float32 [n, dim].

        Raises ValueError for another shape or dtype.
        """
        expected = (3, self.image_size, self.image_size)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
            raise ValueError(
                f"expected uint8 [n, {', '.join(map(str, expected))}], "
                f"got {pixels.dtype} {list(pixels.shape)}"
            )
        vectors = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), batch):
            part = slice(start, start + batch)
            # A copy: the array may be read-only.
            features = self._features.images(torch.tensor(pixels[part]))
            with torch.inference_mode():
                vectors[part] = self.model.project_image(torch.from_numpy(features)).numpy()
        return vectors
