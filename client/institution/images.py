"""Decoding an institution's images, which may come from somebody else.

An image is measured from its header before a pixel is decoded, and only well-known formats are
tried. An image that cannot be read is refused by name, so that it costs itself alone.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.institution.formats.stored import read_stored
from client.institution.pairs import Pair, PairFolder, Skip
from protocol.errors import DataError, UsageError
from protocol.model.pictures import Fit, opened, read_picture, upright_rgb

DICOM = "DICOM"
Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")


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

        return upright_rgb(_of_dicom(path, decode, data), fit)
    return read_picture(str(path), data, fit)


def measure_image(path: Path) -> tuple[str, int, int]:
    """Format, width and height from the header; raises DataError as :func:`load_image` does."""
    data = _read(path)
    if _is_dicom(data):
        from client.institution.formats.dicom_header import measure

        return DICOM, *_of_dicom(path, measure, data)
    with opened(str(path), data) as image:
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


def _is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def _of_dicom(path: Path, verb: Callable[[bytes], T], data: bytes) -> T:
    try:
        return verb(data)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from error
