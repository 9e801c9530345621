"""Encoded pictures to uint8 RGB of one size, with every unreadable one named.

One decoder serves all forms of data: Pillow, restricted to raster formats, so that a file's own claim never starts an
interpreter (Pillow would hand PostScript to Ghostscript). It reads 10,000 CIFAR PNGs in a second.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from sanitize.data.room import Room
from sanitize.data.unreadable import Unreadable, first_of
from sanitize.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
BLOCK = 512
# Threads gain nothing at 40 kB a picture, and at 2 kB they wait for each other (measured: twice as slow).
BYTES_WORTH_A_THREAD = 65_536

Payload = bytes | Path | Image.Image


@dataclass(frozen=True)
class Decoded:
    """Pixels, and what gave none.

    Args:
        images: (N, 3, S, S) uint8, those that could be read, in order.
        unreadable: The others.
    """

    images: Tensor
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How encoded pictures become RGB of one size.

    Greyscale, palette, CMYK and 16-bit pictures are converted to 8-bit RGB (16 bit: the high byte), transparency is
    dropped, and an EXIF orientation is left alone. Other sizes are resized: shorter side, then centre crop; bilinear
    with antialias.

    Args:
        source: What the user called the data, for messages.
        image_size: Height and width in pixels; None keeps the size, which must then be square and the same for all.
        skip_unreadable: Leave out pictures that cannot be read, unless none can; else they are an error.
        room: For the decoded images; None for memory without limit.
    """

    source: str
    image_size: int | None = None
    skip_unreadable: bool = False
    room: Room | None = None

    def decode(self, pictures: Iterable[tuple[str, Payload]], count: int) -> Decoded:
        """Decode pictures.

        Args:
            pictures: Name (for messages: "row 7", a file name) and encoded bytes, path or picture; read lazily.
            count: How many there are.

        Raises:
            DataError: A picture cannot be read, is too large, or has another size than the first while there is no
                `image_size`; the message says which and how many.
        """
        output: Tensor | None = None
        unreadable: list[Unreadable] = []
        odd: list[str] = []
        done = 0
        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
            # The size limit is enforced in _decode, with an error that names the picture.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            iterator = iter(pictures)
            while block := list(islice(iterator, BLOCK)):
                for (name, _), picture in zip(block, _decode_block(block, self.image_size, pool), strict=True):
                    if isinstance(picture, str):
                        unreadable.append(Unreadable(done, name, picture))
                    else:
                        if output is None:
                            output = self.space(count, picture)
                        if picture.shape == output.shape[1:]:
                            output[done - len(unreadable)] = picture
                        else:
                            odd.append(f"{name} ({_size(picture)})")
                    done += 1
        if unreadable and (output is None or not self.skip_unreadable):
            raise DataError(
                f"{len(unreadable)} of {count} images in {self.source} cannot be read: {first_of(unreadable)}. "
                "Repair or remove them; `sanitize dataset` and `sanitize intake` leave them out with --skip-unreadable."
            )
        if output is None or done != count:
            raise DataError(
                f"{self.source} gave {done} images where {count} were announced. Check that the data is complete."
            )
        if odd:
            raise DataError(
                f"the images of {self.source} differ in size: the first is {_size(output)}, {len(odd)} of {count} are "
                f"not: {first_of(odd)}. Give --image-size to bring them to one size."
            )
        return Decoded(require_square(output[: count - len(unreadable)], self.source), tuple(unreadable))

    def space(self, count: int, picture: Tensor) -> Tensor:
        """Room for so many images of the picture's shape (3, H, W).

        Raises:
            DataError: There is not enough memory, or space on the disk.
        """
        shape = (count, *picture.shape)
        if self.room is not None:
            return self.room.empty(shape, torch.uint8)
        try:
            return torch.empty(shape, dtype=torch.uint8)
        except RuntimeError as error:
            size = f"{count * picture.numel() / 2**30:.0f} GiB"
            raise DataError(f"the {count:,} images of {self.source} take {size} of memory. Name fewer rows.") from error


def read_picture(path: Path) -> Tensor:
    """One picture file as (3, H, W) uint8, RGB, of its own size.

    Raises:
        DataError: It cannot be read.
    """
    picture = _decode(path, None)
    if isinstance(picture, str):
        raise DataError(f"{path} cannot be read: {picture}.")
    return picture


def resize_images(images: Tensor, image_size: int | None, source: str) -> Tensor:
    """Bring images of one size to another: shorter side, then centre crop; bilinear with antialias.

    Args:
        images: (N, 3, H, W) uint8.
        image_size: Height and width in pixels, or None to keep the size, which must then be square.
        source: What the user called the data, for messages.

    Returns:
        (N, 3, image_size, image_size) uint8.

    Raises:
        DataError: The images are not square and `image_size` is None, or too elongated to resize.
    """
    if image_size is None:
        return require_square(images, source)
    if problem := _elongated(images.shape[-2], images.shape[-1], image_size):
        raise DataError(f"the images of {source} cannot be resized: {problem}.")
    blocks = [_fit(images[start : start + BLOCK], image_size) for start in range(0, len(images), BLOCK)]
    return torch.cat(blocks) if len(blocks) > 1 else blocks[0]


def require_square(images: Tensor, source: str) -> Tensor:
    """The same images.

    Raises:
        DataError: They are not square: networks here take one image size.
    """
    if images.shape[-1] != images.shape[-2]:
        raise DataError(
            f"the images of {source} are {_size(images)} (height x width) px. Give --image-size to crop them."
        )
    return images


def _decode_block(
    block: list[tuple[str, Payload]], image_size: int | None, pool: ThreadPoolExecutor
) -> Iterator[Tensor | str]:
    payloads = [payload for _, payload in block]
    first = payloads[0]
    size = len(first) if isinstance(first, bytes) else first.stat().st_size if isinstance(first, Path) else 0
    run = pool.map if size >= BYTES_WORTH_A_THREAD else map
    return run(lambda payload: _decode(payload, image_size), payloads)


def _decode(payload: Payload, image_size: int | None) -> Tensor | str:
    """A (3, H, W) uint8 tensor, or why there is none."""
    if payload == b"":
        return "no bytes (a path to another file is not followed)"
    try:
        if isinstance(payload, Image.Image):
            return _convert(payload, image_size)
        stream = io.BytesIO(payload) if isinstance(payload, bytes) else payload
        with Image.open(stream, formats=FORMATS) as picture:
            return _convert(picture, image_size)
    except UnidentifiedImageError:
        return f"not a picture ({', '.join(FORMATS)} are read)"
    except MemoryError:  # also a chunk of a few bytes that declares gigabytes, which Pillow reserves
        return "it asks for more memory than there is (a decompression bomb?)"
    except Exception as error:  # decoders of damaged files raise OSError, SyntaxError, ValueError, struct.error, ...
        return f"{type(error).__name__}: {error}"


def _convert(picture: Image.Image, image_size: int | None) -> Tensor | str:
    width, height = picture.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        return f"{width}x{height} px is more than the limit of {limit:,} pixels (a decompression bomb?)"
    if image_size is not None and (problem := _elongated(height, width, image_size)):
        return problem
    if picture.mode in ("F", "I", "I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            return f"pixels of mode {picture.mode} have no known range; convert the picture to 8 or 16 bit"
        pixels = np.repeat((values >> 8).astype(np.uint8)[None], 3, axis=0)
    else:
        pixels = np.array(picture.convert("RGB")).transpose(2, 0, 1)
    image = torch.from_numpy(pixels)
    return image if image_size is None else _fit(image, image_size)


def _fit(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    if min(images.shape[-2:]) != size:
        images = transforms.resize(images, [size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    cropped: Tensor = transforms.center_crop(images, [size, size])
    return cropped


def _elongated(height: int, width: int, size: int) -> str | None:
    """Why a picture cannot be resized: a 1-pixel line of great length would become gigabytes before its crop."""
    pixels = size * size * max(height, width) // max(1, min(height, width))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        return f"{width}x{height} px is too elongated to be resized to {size} px"
    return None


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"
