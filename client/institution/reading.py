"""From an institution's folder to what training sees: pictures, or features of frozen encoders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from client.institution.augmentation.synonyms import Synonyms
from client.institution.features import (
    default_folder,
    image_features,
    open_cache,
    text_features,
)
from client.institution.images import load_pixels
from client.institution.pairs import Pair, PairFolder, Skip, read_pairs
from client.institution.training_set import Captions, FeatureSet, PictureSet, TrainingSet
from protocol.errors import DataError
from protocol.files import check_file
from protocol.model.accelerated import Features
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers

PUBLIC_BYTES = 64 << 20
PUBLIC_LETTERS = 4_096


@dataclass(frozen=True, slots=True)
class Held:
    """One split: its items, how many lines and images were unusable, how many captions cut."""

    data: TrainingSet
    skipped: int
    cut: int
    skips: tuple[Skip, ...] = ()


class Frozen:
    """A model to compute features with; equal to another whose frozen part is the same."""

    def __init__(self, model: TwoTowers, settings: TrainingSettings) -> None:
        self.model, self.settings = model, settings
        self._key = (
            settings.train == "heads",
            settings.towers.to_json(),
            0 if settings.towers.image_weights and settings.towers.text_weights else settings.seed,
            settings.views,
            settings.image_augmentation,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=4)
def _features(frozen: Frozen) -> Features:
    """Exported once, for all institutions that share a process and for all rounds."""
    return Features(frozen.model)


@dataclass(frozen=True, slots=True)
class Source:
    """An institution's folder of pairs, and where else it keeps what training needs.

    Empty names: no public captions, the synonyms that come along, the usual cache folder.
    """

    data: Path
    group_key: str = "group"
    public_captions: str = ""
    synonyms: str = ""
    cache: str = ""

    def read(
        self,
        split: str,
        model: TwoTowers,
        settings: TrainingSettings,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Held:
        """One split for ``model``: features where its backbones are frozen, else pictures.

        Raises DataError for a folder or file that cannot be used.
        """
        folder = read_pairs(self.data, self.group_key)
        public = read_public(Path(self.public_captions)) if self.public_captions else ()
        return self.of(folder, folder.split(split), model, settings, public, progress)

    def of(
        self,
        folder: PairFolder,
        pairs: Sequence[Pair],
        model: TwoTowers,
        settings: TrainingSettings,
        public: tuple[str, ...] = (),
        progress: Callable[[int], None] = lambda done: None,
    ) -> Held:
        """Some pairs of a folder, likewise."""
        frozen = settings.train == "heads"
        if not frozen:
            towers = model.settings
            fit = (towers.image_size, towers.image_crop or None, towers.image_resample)
            pixels, kept, skips = load_pixels(folder, pairs, *fit)
            captions = _captions([pairs[index] for index in kept], public)
            synonyms = Synonyms.read(Path(self.synonyms)) if self.synonyms else None
            data: TrainingSet = PictureSet(pixels, captions, synonyms)
        else:
            features = _features(Frozen(model, settings))
            cache = open_cache(Path(self.cache) if self.cache else default_folder())
            rows, kept, skips = image_features(
                model,
                features,
                cache,
                folder,
                pairs,
                settings.views,
                settings.image_augmentation,
                progress,
            )
            captions = _captions([pairs[index] for index in kept], public)
            texts, _, _ = captions.numbered()
            data = FeatureSet(rows, text_features(model, features, cache, texts), captions)
        cut = model.tokenizer.cut(data.texts)
        return Held(data, len(folder.skipped) + len(skips), cut, (*folder.skipped, *skips))


def source_of(data: Path, config: Mapping[str, Any]) -> Source:
    """What an institution's own settings (``node_config``) say of where things lie.

    Raises DataError for a setting that is not text.
    """

    def text(key: str) -> str:
        value = config.get(key, "")
        if not isinstance(value, str):
            raise DataError(f"the institution's setting {key}: expected text, got {value!r:.40}")
        return value

    return Source(
        data, text("group-key") or "group", text("public-captions"), text("synonyms"), text("cache")
    )


def read_public(path: Path) -> tuple[str, ...]:
    """Public captions: a text file (UTF-8) with one on each line; empty lines are passed over.

    Raises DataError for a file that is missing, too large, or not such text.
    """
    try:
        check_file(path, PUBLIC_BYTES, "give a shorter list of captions")
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: no list of captions: {error}", "give a text file with a caption a line"
        ) from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found or max(map(len, found)) > PUBLIC_LETTERS:
        raise DataError(
            f"{path}: expected captions of at most {PUBLIC_LETTERS:,} letters, one a line",
            "give a text file with a caption a line",
        )
    return found


def _captions(pairs: Sequence[Pair], public: tuple[str, ...]) -> Captions:
    groups = tuple(pair.group for pair in pairs)
    some = groups if any(group is not None for group in groups) else ()
    return Captions(tuple(pair.captions for pair in pairs), some, public)
