"""Decoding an institution's images, which may come from somebody else.

An image is measured from its header before a pixel is decoded, and only well-known formats are
tried. An image that cannot be read is refused by name, so that it costs itself alone.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from client.institution.formats.stored import IMAGE_BYTES as IMAGE_BYTES
from client.institution.formats.stored import IMAGE_PIXELS as IMAGE_PIXELS
from client.institution.formats.stored import IMAGE_SIDE as IMAGE_SIDE
from client.institution.formats.stored import read_stored
from client.institution.pairs import Pair, PairFolder, Skip
from protocol.errors import DataError, UsageError

DICOM = "DICOM"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
RESAMPLES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float] | None
T = TypeVar("T")

# Pillow's own alarm for decompression bombs must stop the read, not scroll past.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image becomes a square of ``size`` pixels a side.

    Without ``crop`` it is squeezed. With it, the shorter side is scaled to ``round(size / crop)``
    and the centre is cut out, as pretrained weights expect (torchvision's presets: Resize, then
    CenterCrop; 224 of 256 is 0.875). ``resample`` is ``bicubic`` or ``bilinear``, both with
    antialias. Raises UsageError for a value out of range.
    """

    size: int
    crop: float | None = None
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UsageError(f"crop: expected more than 0 and at most 1, got {self.crop}")
        if self.size < 1 or self.resample not in RESAMPLES:
            raise UsageError(
                f"expected a size of at least 1 and one of {', '.join(RESAMPLES)}, got "
                f"{self.size} and {self.resample!r}"
            )

    def __call__(self, image: Image.Image) -> Image.Image:
        """The square."""
        box: tuple[float, ...] | None = None
        if self.crop is not None:
            # Cut before scaling: the long side of a strip would not fit in memory.
            short, shorter = round(self.size / self.crop), min(image.size)
            scaled = [int(short * length / shorter) for length in image.size]
            starts = [round((length - self.size) / 2) for length in scaled]
            corners = (*starts, *(start + self.size for start in starts))
            box = tuple(
                corner * whole / part
                for corner, whole, part in zip(corners, image.size * 2, scaled * 2, strict=True)
            )
        filter_ = RESAMPLES[self.resample]
        return image.resize((self.size, self.size), filter_, cast(Box, box), reducing_gap=2)


def load_image(
    path: Path, size: int | None = None, crop: float | None = None, resample: str = "bicubic"
) -> Image.Image:
    """The image as RGB, upright by its EXIF, transparency laid over white.

    ``path`` may lead into a shard (``…/shard.tar/member``), and to a DICOM file. With ``size`` the
    image is squeezed or cut to ``size x size`` pixels, as :class:`Fit` says. Raises DataError for
    a file that is missing, larger than IMAGE_BYTES or IMAGE_PIXELS, of another format, or damaged.
    """
    fit = None if size is None else Fit(size, crop, resample)
    data = _read(path)
    if _is_dicom(data):
        from client.institution.formats.dicom_pixels import decode  # pydicom takes a while

        return _upright_rgb(_of_dicom(path, decode, data), fit)
    with _opened(path, data) as image:
        return _upright_rgb(image, fit)


def measure_image(path: Path) -> tuple[str, int, int]:
    """Format, width and height from the header; raises DataError as :func:`load_image` does."""
    data = _read(path)
    if _is_dicom(data):
        from client.institution.formats.dicom_header import measure

        return DICOM, *_of_dicom(path, measure, data)
    with _opened(path, data) as image:
        return str(image.format), *image.size


def load_pixels(
    folder: PairFolder,
    pairs: Sequence[Pair],
    size: int,
    crop: float | None = None,
    resample: str = "bicubic",
) -> tuple[Pixels, list[int], tuple[Skip, ...]]:
    """Decodes the images of ``pairs``, several at a time.

    Returns uint8 pixels [n, 3, size, size], the n indices into ``pairs`` that they belong to
    (ascending), and a Skip for each image that could not be read. n may be 0.
    """
    for found in iterate_pixels(folder, pairs, size, crop, resample, max(1, len(pairs))):
        return found
    return np.empty((0, 3, size, size), np.uint8), [], ()


def iterate_pixels(
    folder: PairFolder,
    pairs: Sequence[Pair],
    size: int,
    crop: float | None = None,
    resample: str = "bicubic",
    batch: int = 256,
) -> Iterator[tuple[Pixels, list[int], tuple[Skip, ...]]]:
    """What :func:`load_pixels` returns, for ``batch`` pairs at a time, in order.

    While the caller works on one batch the next is decoded, so two are in memory. Indices are
    into all of ``pairs``; a batch may hold fewer pictures than pairs, even none.
    """
    fit = Fit(size, crop, resample)
    if batch < 1:
        raise UsageError(f"batch: expected at least 1, got {batch}")

    def fill(index: int, place: Pixels) -> Skip | None:
        try:
            image = load_image(folder.path(pairs[index]), fit.size, fit.crop, fit.resample)
        except DataError as error:
            return Skip(pairs[index].file_name, error.message)
        place[...] = np.asarray(image).transpose(2, 0, 1)
        return None

    def collect(
        start: int, pixels: Pixels, filled: list["Future[Skip | None]"]
    ) -> tuple[Pixels, list[int], tuple[Skip, ...]]:
        outcomes = [one.result() for one in filled]
        kept = [place for place, skip in enumerate(outcomes) if skip is None]
        skips = tuple(skip for skip in outcomes if skip is not None)
        return (pixels[kept] if skips else pixels), [start + place for place in kept], skips

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ahead = None
        for start in range(0, len(pairs), batch):
            count = min(batch, len(pairs) - start)
            pixels = np.empty((count, 3, size, size), np.uint8)
            filled = [pool.submit(fill, start + i, pixels[i]) for i in range(count)]
            if ahead is not None:
                yield collect(*ahead)
            ahead = start, pixels, filled
        if ahead is not None:
            yield collect(*ahead)


def _read(path: Path) -> bytes:
    try:
        return read_stored(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"no such image: {path}", "correct its description, or add it") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}", "check its permissions"
        ) from error


@contextmanager
def _opened(path: Path, data: bytes) -> Iterator[Image.Image]:
    """Pillow's image of ``data``, its size checked; whatever decoding raises is a DataError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > IMAGE_PIXELS or max(width, height) > IMAGE_SIDE:
                raise _bomb(path, f"{width} x {height}")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(path, str(error)) from error
    except DataError:
        raise
    except Exception as error:  # a decoder that is fed foreign bytes may raise nearly anything
        known = isinstance(error, UnidentifiedImageError)
        why = "of no known format" if known else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: cannot be read as an image ({why})",
            f"replace it by an undamaged file, one of {', '.join(FORMATS)}",
        ) from error


def _is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def _of_dicom(path: Path, verb: Callable[[bytes], T], data: bytes) -> T:
    try:
        return verb(data)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from error


def _bomb(path: Path, got: str) -> DataError:
    return DataError(
        f"{path}: expected at most {IMAGE_PIXELS:,} pixels and {IMAGE_SIDE:,} a side, got {got}",
        "scale the image down",
    )


def _upright_rgb(image: Image.Image, fit: Fit | None) -> Image.Image:
    if fit is not None:
        image.draft(None, (2 * fit.size, 2 * fit.size))  # a JPEG is then decoded at a fraction
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # scanners; convert() would clip all but the darkest
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.new("RGBA", above.size, "white")
        image.alpha_composite(above)
    rgb = image.convert("RGB")
    return rgb if fit is None else fit(rgb)
