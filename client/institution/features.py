"""Features of frozen backbones, computed once for each image and caption and kept on disk.

They are as private as the images: they stay in a folder that only the institution reads. A row is
known by a hash of the encoder, of how it is shown the picture, and of the picture's own bytes; so
an image that changes is computed anew, and one that moves is not.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.institution.augmentation.image import ImageAugmentation
from client.institution.images import load_pixels
from client.institution.pairs import Pair, PairFolder, Skip
from protocol.errors import DataError, StorageError
from protocol.model.accelerated import Features
from protocol.model.towers import TwoTowers

Floats = npt.NDArray[np.float32]
_BATCH = 64
_TEXTS = 256
_WAIT_SECONDS = 60.0
_SELECT = "SELECT row FROM rows WHERE key=? AND typeof(row)='blob' AND length(row)=?"


@lru_cache(maxsize=8)
def open_cache(folder: Path) -> "FeatureCache":
    """The cache in ``folder``, open for as long as the process lives."""
    return FeatureCache(folder)


class FeatureCache:
    """Rows of float32 by key, in one SQLite file; several threads and processes may share it."""

    def __init__(self, folder: Path) -> None:
        """Opens or makes ``folder/features.sqlite``; raises StorageError if the disk refuses."""
        self._path = folder / "features.sqlite"
        self._lock = Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._rows = sqlite3.connect(self._path, _WAIT_SECONDS, check_same_thread=False)
            self._path.chmod(0o600)
            with self._rows as rows:
                # What a power failure takes is computed again; what is there is whole.
                rows.execute("PRAGMA journal_mode=WAL")
                rows.execute("PRAGMA synchronous=NORMAL")
                rows.execute(
                    "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID"
                )
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from error

    def get(self, keys: Sequence[bytes], width: int) -> dict[bytes, Floats]:
        """The rows float32 [width] that are there; one of another length counts as missing."""
        found: dict[bytes, Floats] = {}
        try:
            for key in keys:
                with self._lock:
                    row = self._rows.execute(_SELECT, (key, 4 * width)).fetchone()
                if row is not None:
                    found[key] = np.frombuffer(row[0], "<f4")
        except sqlite3.Error as error:
            raise self._refused(error) from error
        return found

    def put(self, rows: dict[bytes, Floats]) -> None:
        """Keeps rows; all or, after a crash, none of them. Raises StorageError."""
        values = [(key, row.astype("<f4").tobytes()) for key, row in rows.items()]
        try:
            with self._lock, self._rows as kept:
                kept.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", values)
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Closes the file."""
        self._rows.close()

    def _refused(self, error: Exception) -> StorageError:
        return StorageError(
            f"the cache of features in {self._path.parent} refuses: {error}",
            "free some space, or remove features.sqlite there: it is computed again",
        )


def image_features(
    model: TwoTowers,
    features: Features,
    cache: FeatureCache,
    folder: PairFolder,
    pairs: Sequence[Pair],
    views: int = 1,
    augmentation: str = "none",
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Floats, list[int], tuple[Skip, ...]]:
    """Features float32 [n, views, w] of the images that can be read.

    The first view is the picture as it is, the others are augmented, each by a generator that
    follows from the picture's own bytes. Also returns the n indices into ``pairs`` and a Skip for
    each that cannot be read; ``progress`` is told how many pairs are done.
    """
    settings = model.settings
    side = _side(settings.image_side(), settings.image_weights, model.image)
    rows = np.empty((len(pairs), views, model.image.width), np.float32)
    kept: list[int] = []
    skips: list[Skip] = []
    augment = ImageAugmentation(augmentation)
    for start in range(0, len(pairs), _BATCH):
        indices = range(start, min(start + _BATCH, len(pairs)))
        keys: dict[int, list[bytes]] = {}
        for index in indices:
            try:
                content = hashlib.blake2b(folder.read(pairs[index]), digest_size=32).digest()
            except (OSError, DataError) as error:
                skips.append(Skip(pairs[index].file_name, str(error)))
                continue
            keys[index] = [
                _key(side, augmentation if view else "", view, content) for view in range(views)
            ]
        known = cache.get([key for some in keys.values() for key in some], model.image.width)
        missing = [index for index, some in keys.items() if not all(key in known for key in some)]
        if missing:
            made, unread = _compute(model, features, folder, pairs, missing, keys, augment)
            cache.put(made)
            known |= made
            skips += unread
        for index, some in keys.items():
            if all(key in known for key in some):
                rows[index] = np.stack([known[key] for key in some])
                kept.append(index)
        progress(indices.stop)
    return rows[kept], kept, tuple(skips)


def text_features(
    model: TwoTowers,
    features: Features,
    cache: FeatureCache,
    texts: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
) -> Floats:
    """Features float32 [n, w] of texts, those of one length computed together."""
    side = _side(model.settings.text_side(), model.settings.text_weights, model.text)
    keys = [_key(side, "", 0, text.encode("utf-8", "replace")) for text in texts]
    rows = np.empty((len(texts), model.text.width), np.float32)
    known = cache.get(keys, model.text.width)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    missing = [index for index in order if keys[index] not in known]
    for start in range(0, len(missing), _TEXTS):
        some = missing[start : start + _TEXTS]
        ids, mask = model.tokenizer([texts[index] for index in some])
        made = dict(zip((keys[index] for index in some), features.texts(ids, mask), strict=True))
        cache.put(made)
        known |= made
        progress(len(texts) - len(missing) + start + len(some))
    for index, key in enumerate(keys):
        rows[index] = known[key]
    return rows


def _compute(
    model: TwoTowers,
    features: Features,
    folder: PairFolder,
    pairs: Sequence[Pair],
    indices: Sequence[int],
    keys: dict[int, list[bytes]],
    augment: ImageAugmentation,
) -> tuple[dict[bytes, Floats], tuple[Skip, ...]]:
    settings = model.settings
    pixels, kept, skips = load_pixels(
        folder,
        [pairs[index] for index in indices],
        settings.image_size,
        settings.image_crop or None,
        settings.image_resample,
    )
    made: dict[bytes, Floats] = {}
    whole = torch.from_numpy(pixels)
    for view in range(len(next(iter(keys.values())))):
        shown = whole
        if view and len(kept):
            seen = [_seeded(keys[indices[place]][view]) for place in kept]
            shown = torch.cat([augment(whole[row : row + 1], one) for row, one in enumerate(seen)])
        for place, row in zip(kept, features.images(shown), strict=True):
            made[keys[indices[place]][view]] = row
    return made, skips


def _side(settings: dict[str, Any], sha256: str, backbone: torch.nn.Module) -> str:
    """What names a backbone: its settings, and where they name no file, its random weights."""
    digest = hashlib.blake2b(digest_size=32)
    for name, value in [] if sha256 else backbone.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return json.dumps(settings, sort_keys=True) + digest.hexdigest()


def _seeded(key: bytes) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


def _key(side: str, augmentation: str, view: int, content: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for part in (side.encode(), augmentation.encode(), str(view).encode(), content):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def default_folder() -> Path:
    """Where features lie unless settings name a folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "blindsight" / "features"
