"""Decoding an institution's images, which may come from somebody else.

An image is measured from its header before a pixel is decoded, and only well-known formats are
tried. An image that cannot be read is refused by name, so that it costs itself alone.
"""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from client.institution.pairs import Pair, PairFolder, Skip
from protocol.errors import DataError
from protocol.files import check_file

IMAGE_BYTES = 64 << 20
IMAGE_PIXELS = 40_000_000
#: Longer ones are no pictures: Pillow's BMP decoder lets four bytes skip 255 rows of zeros.
IMAGE_SIDE = 65_535
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# Pillow's own alarm for decompression bombs must stop the read, not scroll past.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def load_image(path: Path, size: int | None = None) -> Image.Image:
    """The image as RGB, upright by its EXIF, transparency laid over white.

    With ``size`` it is squeezed to ``size x size`` pixels. Raises DataError for a file that is
    missing, larger than IMAGE_BYTES or IMAGE_PIXELS, of another format, or damaged.
    """
    try:
        check_file(path, IMAGE_BYTES, "store the image smaller, as JPEG or PNG")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > IMAGE_PIXELS or max(width, height) > IMAGE_SIDE:
                raise _bomb(path, f"{width} x {height}")
            return _upright_rgb(image, size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(path, str(error)) from error
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"no such image: {path}", "correct metadata.jsonl, or add it") from error
    except Exception as error:  # a decoder that is fed foreign bytes may raise nearly anything
        raise DataError(
            f"{path}: cannot be read as an image ({type(error).__name__}: {error})",
            f"replace it by an undamaged file, one of {', '.join(FORMATS)}",
        ) from error


def load_pixels(
    folder: PairFolder, pairs: Sequence[Pair], size: int
) -> tuple[npt.NDArray[np.uint8], list[int], tuple[Skip, ...]]:
    """Decodes the images of ``pairs``, several at a time.

    Returns uint8 pixels [n, 3, size, size], the n indices into ``pairs`` that they belong to
    (ascending), and a Skip for each image that could not be read. n may be 0.
    """
    pixels = np.empty((len(pairs), 3, size, size), np.uint8)

    def fill(index: int) -> Skip | None:
        try:
            image = load_image(folder.path(pairs[index]), size)
        except DataError as error:
            return Skip(pairs[index].file_name, error.message)
        pixels[index] = np.asarray(image).transpose(2, 0, 1)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        outcomes = list(pool.map(fill, range(len(pairs))))
    kept = [index for index, skip in enumerate(outcomes) if skip is None]
    skips = tuple(skip for skip in outcomes if skip is not None)
    return (pixels[kept] if skips else pixels), kept, skips


def _bomb(path: Path, got: str) -> DataError:
    return DataError(
        f"{path}: expected at most {IMAGE_PIXELS:,} pixels and {IMAGE_SIDE:,} a side, got {got}",
        "scale the image down",
    )


def _upright_rgb(image: Image.Image, size: int | None) -> Image.Image:
    if size is not None:
        image.draft(None, (2 * size, 2 * size))  # a JPEG is then decoded at a fraction
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # scanners; convert() would clip all but the darkest
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.new("RGBA", above.size, "white")
        image.alpha_composite(above)
    rgb = image.convert("RGB")
    if size is None:
        return rgb
    return rgb.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2)
