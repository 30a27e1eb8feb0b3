"""A release: one trained model as a folder that proves itself.

    <release_id>/
        manifest.json       format, settings, sizes and SHA-256 of the files, metrics, created
        model.safetensors   the weights; safetensors holds numbers alone and runs nothing
        tokenizer.json      where the text encoder came with one; its hash is in the settings

The id is the first 16 hex digits of SHA-256 over the settings and the weights' own hash. The
same training from the same seed gives the same id, whenever and wherever it ran; embeddings of
two sides compare exactly when their ids are equal.

torch is loaded by those who build a model: the coordinator's directory reads manifests without it.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import BlindsightError, MalformedMessage, StorageError
from protocol.files import sync_folder
from protocol.model.tower_settings import TowerSettings

if TYPE_CHECKING:
    from protocol.model.towers import TwoTowers

FORMAT = 2
MANIFEST, MODEL, TOKENIZER = "manifest.json", "model.safetensors", "tokenizer.json"
MANIFEST_BYTES = 1 << 16
TOKENIZER_BYTES = 64 << 20
MODEL_BYTES = 1 << 31
_KEYS = {"format", "release_id", "settings", "files", "metrics", "created"}
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Release:
    """A release on disk whose manifest and hashes have been checked."""

    path: Path
    release_id: str
    settings: TowerSettings
    sha256: str
    size: int
    metrics: Mapping[str, float]
    created: str

    def load(self) -> "TwoTowers":
        """Rebuilds the model. Raises StorageError when the files are not those released."""
        return self.parse(read_file(self.path / MODEL, self.size, self.sha256), self.tokenizer())

    def tokenizer(self) -> str:
        """The text of tokenizer.json, empty where there is none; checked against the settings."""
        if not self.settings.tokenizer:
            return ""
        path = self.path / TOKENIZER
        return read_file(path, None, self.settings.tokenizer, TOKENIZER_BYTES).decode()

    def parse(self, weights: bytes, tokenizer: str = "") -> "TwoTowers":
        """As ``load``, from the bytes of model.safetensors, whose hash has been checked."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load

        from protocol.model.towers import TwoTowers

        # Shapes alone at first: settings may claim far more memory than there are weights.
        try:
            with torch.device("meta"):
                expected = TwoTowers(self.settings, tokenizer=tokenizer).state_dict()
        except (BlindsightError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise _damaged(
                self.path / MANIFEST, f"no model can be built from its settings: {error!s:.200}"
            ) from error
        try:
            found = load(weights)
        except SafetensorError as error:
            raise _damaged(self.path / MODEL, f"not in safetensors format: {error}") from error
        if set(found) != set(expected):
            raise _damaged(self.path / MODEL, "it holds other arrays than the settings ask for")
        for name, value in found.items():
            like = expected[name]
            if value.shape != like.shape or value.dtype != like.dtype:
                raise _damaged(
                    self.path / MODEL,
                    f"array {name}: expected {like.dtype} {tuple(like.shape)}, "
                    f"got {value.dtype} {tuple(value.shape)}",
                )
            if not bool(torch.isfinite(value).all()):
                raise _damaged(self.path / MODEL, f"array {name} holds values that are not finite")
        model = TwoTowers(self.settings, tokenizer=tokenizer)
        model.load_state_dict(found)
        return model.eval()


def write_release(root: Path, model: "TwoTowers", metrics: Mapping[str, float]) -> Release:
    """Writes ``root/<release_id>`` in one step and returns it.

    A release of the same id that is there already and passes its checks is kept as it is.
    ``metrics`` are finite numbers under plain names. Raises StorageError when the disk refuses.
    """
    from safetensors.torch import save

    weights = save({name: value.contiguous() for name, value in model.state_dict().items()})
    tokenizer = getattr(model.tokenizer, "text", "").encode()
    sha256 = hashlib.sha256(weights).hexdigest()
    release_id = identify(model.settings, sha256)
    manifest = {
        "format": FORMAT,
        "release_id": release_id,
        "settings": model.settings.to_dict(),
        "files": {MODEL: {"size": len(weights), "sha256": sha256}},
        "metrics": {name: float(value) for name, value in metrics.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = root / release_id
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return read_release(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{release_id}.", dir=root))
        try:
            _write(temporary / MODEL, weights)
            if tokenizer:
                _write(temporary / TOKENIZER, tokenizer)
            _write(temporary / MANIFEST, text.encode())
            temporary.chmod(0o755)
            sync_folder(temporary)
            temporary.rename(path)
            sync_folder(root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if path.exists():  # another process wrote the same release a moment before
            return read_release(path)
        raise StorageError(
            f"cannot write the release {path}: {error.strerror or error}",
            "free some space or choose another folder, then write it again",
        ) from error
    return parse_manifest(path, text.encode())


def read_release(path: Path) -> Release:
    """Reads a release and checks sizes and hashes of all of it; loads no weights.

    Raises StorageError that names the file that is missing or is not what it should be.
    """
    release = parse_manifest(path, read_file(path / MANIFEST, None, None))
    read_file(path / MODEL, release.size, release.sha256)
    release.tokenizer()
    return release


def parse_manifest(path: Path, data: bytes) -> Release:
    """Checks a manifest's bytes, from wherever they came; ``path`` is the release's folder.

    Raises StorageError for anything but the keys, types and ranges of this format.
    """
    where = path / MANIFEST
    try:
        if len(data) > MANIFEST_BYTES:
            raise ValueError(f"longer than {MANIFEST_BYTES:,} bytes")
        found: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _damaged(where, f"not a release of format {FORMAT}")
    if set(found) != _KEYS:
        raise _damaged(where, f"expected the keys {sorted(_KEYS)}, got {sorted(found)!s:.200}")
    files, metrics, created = found["files"], found["metrics"], found["created"]
    if not isinstance(files, dict) or set(files) != {MODEL}:
        raise _damaged(where, f"files: expected {MODEL} alone")
    entry = files[MODEL]
    if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
        raise _damaged(where, "files: expected size and sha256")
    size, sha256 = entry["size"], entry["sha256"]
    if type(size) is not int or not 0 < size <= MODEL_BYTES:
        raise _damaged(where, f"files: expected a size up to {MODEL_BYTES:,}, got {size!r:.40}")
    if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= _HEX:
        raise _damaged(where, "files: expected a SHA-256 in hexadecimal")
    if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
        raise _damaged(where, "metrics: expected finite numbers by name")
    if not isinstance(created, str) or len(created) > 64:
        raise _damaged(where, "created: expected a time")
    try:
        settings = TowerSettings.from_dict(found["settings"])
    except MalformedMessage as error:
        raise _damaged(where, error.message) from error
    release_id = identify(settings, sha256)
    if found["release_id"] != release_id:
        raise _damaged(where, f"release_id: its contents give {release_id}")
    return Release(path, release_id, settings, sha256, size, metrics, created)


def identify(settings: TowerSettings, sha256: str) -> str:
    """The release id: 16 hex digits that follow from the settings and the weights alone."""
    return hashlib.sha256(f"{settings.to_json()}\n{sha256}".encode()).hexdigest()[:16]


def read_file(
    path: Path, size: int | None, sha256: str | None, most: int = MANIFEST_BYTES
) -> bytes:
    """Reads a file of a release, checking the size before and the hash after.

    A ``size`` of None stands for at most ``most`` bytes. Raises StorageError, naming the file.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size if size is not None else found > most:
                limit = f"{size:,}" if size is not None else f"at most {most:,}"
                raise _damaged(path, f"expected {limit} bytes, got {found:,}")
            data = file.read(found + 1)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(path, "its SHA-256 is not the one in the manifest")
    return data


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf  # type: ignore[arg-type]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(f"{path}: {why}", "fetch or train the release again; do not use this one")
