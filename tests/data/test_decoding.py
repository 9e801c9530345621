"""Pictures of every mode and size, whole and damaged, against Pillow and torchvision."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from sanitize.data.decoding import Decoder, resize_images
from sanitize.errors import DataError


def _pixels(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def _decode(*payloads: bytes, image_size: int | None = None) -> torch.Tensor:
    named = ((f"row {row}", payload) for row, payload in enumerate(payloads))
    return Decoder(source="here", image_size=image_size).decode(named, len(payloads)).images


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    assert torch.equal(
        _decode(_encode(Image.fromarray(_pixels()), kind))[0], torch.from_numpy(_pixels()).permute(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "P")]
)
@pytest.mark.parametrize("size", [8, 40])
def test_other_formats_and_modes_equal_pillow(kind: str, mode: str, size: int) -> None:
    payload = _encode(Image.fromarray(_pixels(size, size)).convert(mode), kind)
    expected = np.array(Image.open(io.BytesIO(payload)).convert("RGB"))
    assert torch.equal(_decode(payload)[0], torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_png_modes_become_rgb(mode: str) -> None:
    picture = Image.fromarray(_pixels()).convert(mode)
    expected = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(_decode(_encode(picture))[0], expected)


def test_16_bit_grey_keeps_the_high_byte() -> None:
    values = np.array([[0, 255], [256, 65535]], dtype=np.uint16)
    assert _decode(_encode(Image.fromarray(values)))[0].tolist() == [[[0, 0], [1, 255]]] * 3


def test_floating_point_pictures_have_no_known_range() -> None:
    with pytest.raises(DataError, match="no known range"):
        _decode(_encode(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"))


def test_exif_orientation_is_left_alone() -> None:
    picture = Image.fromarray(_pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    assert torch.equal(_decode(_encode(picture, exif=exif)), _decode(_encode(picture)))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (90, 50), (16, 24), (33, 32), (32, 33), (32, 32)])
def test_resizing_equals_torchvision(height: int, width: int) -> None:
    pixels = torch.from_numpy(_pixels(height, width)).permute(2, 0, 1)
    reference = transforms.resize(pixels, [32], interpolation=InterpolationMode.BILINEAR, antialias=True)
    reference = transforms.center_crop(reference, [32, 32])
    assert torch.equal(_decode(_encode(Image.fromarray(_pixels(height, width))), image_size=32)[0], reference)
    assert torch.equal(resize_images(pixels[None].repeat(3, 1, 1, 1), 32, "here")[2], reference)


def test_pictures_of_different_sizes_need_an_image_size() -> None:
    payloads = [_encode(Image.fromarray(_pixels(size, size))) for size in (8, 8, 9, 10)]
    with pytest.raises(DataError, match=r"2 of 4 are not: row 2 \(9x9\); row 3 \(10x10\).*--image-size"):
        _decode(*payloads)
    assert _decode(*payloads, image_size=8).shape == (4, 3, 8, 8)
    with pytest.raises(DataError, match=r"8x6 .*--image-size"):
        _decode(_encode(Image.fromarray(_pixels(8, 6))))


def test_every_damaged_picture_is_counted_and_named() -> None:
    good = _encode(Image.fromarray(_pixels(32, 32)))
    jpeg = _encode(Image.fromarray(_pixels(32, 32)), "JPEG")
    flipped = bytearray(good)
    flipped[60] ^= 0xFF
    bad = [good[: len(good) // 2], jpeg[: len(jpeg) // 2], bytes(flipped), b"text", b"", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    with pytest.raises(DataError) as caught:
        _decode(good, *bad, good)
    message = str(caught.value)
    assert message.startswith("6 of 8 images in here cannot be read: row 1: ")
    assert "row 5: no bytes" in message and "and 1 more" in message and "row 4: not a picture" in message


def test_the_seven_hundredth_damaged_picture_is_found() -> None:
    good = _encode(Image.fromarray(_pixels()))
    with pytest.raises(DataError, match="1 of 1000 images in here cannot be read: row 700: not a picture"):
        _decode(*[good] * 700, b"bad", *[good] * 299)


def test_large_pictures_decode_in_threads_in_order() -> None:
    pictures = [Image.fromarray(np.roll(_pixels(256, 256), shift, axis=0)) for shift in range(4)]
    payloads = [_encode(picture) for picture in pictures]
    assert len(payloads[0]) > 65_536
    assert torch.equal(_decode(*payloads), torch.cat([_decode(payload) for payload in payloads]))


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that announces `width` x `height` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes((8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])  # above Pillow's limit once, and far above
def test_decompression_bombs_are_refused(size: tuple[int, int], recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(DataError, match=r"row 0: .*(limit|bomb)"):
        _decode(_bomb(*size), image_size=32)
    assert not recwarn.list


def test_a_line_is_too_elongated_to_resize() -> None:
    with pytest.raises(DataError, match="too elongated"):
        _decode(_bomb(80_000_000, 1), image_size=32)
    with pytest.raises(DataError, match="too elongated"):
        resize_images(torch.zeros(1, 3, 1, 200_000, dtype=torch.uint8), 32, "here")


def test_files_are_read_from_paths(tmp_path: Path) -> None:
    Image.fromarray(_pixels()).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    here = Decoder(source="here")
    assert here.decode([("a", tmp_path / "a.png")], 1).images.shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r"1 of 1 images in here cannot be read: b\.png: not a picture"):
        here.decode([("b.png", tmp_path / "b.png")], 1)


def test_a_source_that_ends_early_is_noticed() -> None:
    with pytest.raises(DataError, match="1 images where 2 were announced"):
        Decoder(source="here").decode([("a", _encode(Image.fromarray(_pixels())))], 2)
