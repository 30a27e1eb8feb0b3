"""How a picture that somebody else made becomes pixels: the same at every party.

A picture is measured from its header before a pixel is decoded, and only well-known formats are
tried. What cannot be read is refused by name.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from protocol.errors import DataError, UsageError

IMAGE_BYTES = 64 << 20
IMAGE_PIXELS = 40_000_000
#: Longer ones are no pictures: Pillow's BMP decoder lets four bytes skip 255 rows of zeros.
IMAGE_SIDE = 65_535
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
RESAMPLES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
Box = tuple[float, float, float, float] | None

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


@contextmanager
def opened(name: str, data: bytes) -> Iterator[Image.Image]:
    """Pillow's image of ``data``, its size checked; whatever decoding raises is a DataError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > IMAGE_PIXELS or max(width, height) > IMAGE_SIDE:
                raise _bomb(name, f"{width} x {height}")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(name, str(error)) from error
    except DataError:
        raise
    except Exception as error:  # a decoder that is fed foreign bytes may raise nearly anything
        known = isinstance(error, UnidentifiedImageError)
        why = "of no known format" if known else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{name}: cannot be read as an image ({why})",
            f"replace it by an undamaged file, one of {', '.join(FORMATS)}",
        ) from error


def read_picture(name: str, data: bytes, fit: Fit | None = None) -> Image.Image:
    """The picture in ``data`` as RGB, upright by its EXIF, transparency laid over white.

    Raises DataError, naming ``name``, for more than IMAGE_BYTES or IMAGE_PIXELS, another format
    or damage.
    """
    if len(data) > IMAGE_BYTES:
        raise DataError(f"{name}: expected at most {IMAGE_BYTES:,} bytes, got {len(data):,}")
    with opened(name, data) as image:
        return upright_rgb(image, fit)


def upright_rgb(image: Image.Image, fit: Fit | None) -> Image.Image:
    """A decoded picture as RGB, upright, transparency laid over white; then what ``fit`` says."""
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


def _bomb(name: str, got: str) -> DataError:
    return DataError(
        f"{name}: expected at most {IMAGE_PIXELS:,} pixels and {IMAGE_SIDE:,} a side, got {got}",
        "scale the image down",
    )
