"""Random views for self-supervised training, batched: each image gets its own crop, flip, colours, blur and so on.

Crop and flip are one `grid_sample`; brightness, contrast, saturation, hue and grey fold into one 3x3 matrix and an
offset for each image; blur is two batched matrix products. Kornia has the same operations, but takes no generator and
is several times slower on a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sanitize.errors import ConfigError

RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
JITTER_PROBABILITY = 0.8
SIGMAS = (0.1, 2.0)  # of the blur, px
SOLARISED_FROM = 0.5
# ITU-R 601 luma, rounded as torchvision's greyscale has it.
LUMA = (0.2989, 0.587, 0.114)
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class SSLViews:
    """Random resized crop, flip, colour jitter, grey and blur, as in SimCLR (Chen et al. 2020, arXiv:2002.05709).

    Solarisation comes from BYOL (Grill et al. 2020, arXiv:2006.07733, appendix B).

    Crops are distributed as torchvision's `RandomResizedCrop` (area from `min_scale` to 1, ratio 3/4 to 4/3, whole
    pixels, bilinear), colour factors as its `ColorJitter`.

    Differs from torchvision: crops larger than the view are sampled without antialias (images have the size of the
    views, as a rule, so that crops only grow); colour operations have a fixed order (brightness, contrast, saturation,
    hue) and are clamped once, at the end; hue is rotated in YIQ, which keeps luma, not in HSV; the blur's kernel is not
    cut off, and only pixels of the image have weight in it.

    Args:
        image_size: Height and width of the views in pixels.
        min_scale: Smallest share of the image's area that a crop covers, in (0, 1].
        jitter: Strength of brightness, contrast and saturation (factors from 1 - jitter to 1 + jitter) and, by a
            quarter of it, of hue (in turns), applied to an image with probability 0.8. In [0, 1]; 0 for none.
        grey: Probability of a grey view, in [0, 1].
        flip: Probability of a mirrored view, in [0, 1]; 0 where left and right differ, as with digits.
        blur: Probability of a Gaussian blur, in [0, 1]; its standard deviation is 0.1 to 2 px.
        solarise: Probability that values from 0.5 on are inverted, in [0, 1].

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> views = SSLViews(32, flip=0.0)
        >>> views(torch.rand(8, 3, 32, 32), torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(
        self,
        image_size: int,
        *,
        min_scale: float = 0.2,
        jitter: float = 0.4,
        grey: float = 0.2,
        flip: float = 0.5,
        blur: float = 0.0,
        solarise: float = 0.0,
    ) -> None:
        if image_size < 1:
            raise ConfigError(f"image size {image_size} of views is not a number of pixels; give 1 or more.")
        shares = {"min_scale": min_scale, "jitter": jitter, "grey": grey, "flip": flip}
        for name, value in (shares | {"blur": blur, "solarise": solarise}).items():
            if not 0 <= value <= 1 or (name == "min_scale" and value == 0):
                raise ConfigError(f"{name} of views must be in [0, 1] (min_scale above 0), got {value}.")
        self.image_size = image_size
        self.min_scale = min_scale
        self.jitter = jitter
        self.grey = grey
        self.flip = flip
        self.blur = blur
        self.solarise = solarise

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"SSLViews({values})"

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each image.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; not changed.
            generator: Of all randomness, on any device: the same seed on the same device gives the same views
                wherever the images are. How much is drawn depends on N alone, and on whether there is any blur or
                solarisation, whose numbers are drawn last.

        Returns:
            (N, 3, image_size, image_size) in [0, 1], on the device and of the type of `images`.
        """
        count = len(images)
        drawn = torch.rand((count, 2 * ATTEMPTS + 9), generator=generator, device=generator.device).to(images.device)
        shape, place, chance, factors = torch.split(drawn, [2 * ATTEMPTS, 2, 3, 4], dim=1)
        boxes = crop_boxes(shape, place, images.shape[-2], images.shape[-1], self.min_scale)
        # Coordinates and colours in half precision would be off by pixels and bands, whatever the network runs in.
        views = resized_crops(images.float(), boxes, chance[:, 0] < self.flip, self.image_size)
        jittered = (chance[:, 1] < JITTER_PROBABILITY)[:, None]
        strength = self.jitter * (2 * factors - 1) * jittered
        brightness, contrast, saturation = (1 + strength[:, :3]).unbind(dim=1)
        views = recolor(
            views,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=strength[:, 3] / 4,
            grey=chance[:, 2] < self.grey,
        )
        if self.blur or self.solarise:
            drawn = torch.rand((count, 3), generator=generator, device=generator.device).to(images.device)
            if self.blur:
                sigma = SIGMAS[0] + (SIGMAS[1] - SIGMAS[0]) * drawn[:, 1]
                views = blurred(views, sigma, drawn[:, 0] < self.blur)
            if self.solarise:
                views = solarised(views, drawn[:, 2] < self.solarise)
        return views.to(images.dtype)


def crop_boxes(shape: Tensor, place: Tensor, height: int, width: int, min_scale: float) -> Tensor:
    """Random crops as torchvision's `RandomResizedCrop` draws them.

    Args:
        shape: (N, 2 * attempts) uniform in [0, 1): the first attempt whose crop fits counts; the whole image if none.
        place: (N, 2) uniform in [0, 1).
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        min_scale: Smallest share of the area.

    Returns:
        (N, 4) float32: top, left, height, width, whole pixels.
    """
    area, ratio = shape.float().chunk(2, dim=1)
    area = height * width * (min_scale + (1 - min_scale) * area)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * ratio)
    rows, columns = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    fits = fits.gather(1, first).squeeze(1)
    rows = torch.where(fits, rows.gather(1, first).squeeze(1), height)
    columns = torch.where(fits, columns.gather(1, first).squeeze(1), width)
    top = (place[:, 0] * (height - rows + 1)).floor().minimum(height - rows)
    left = (place[:, 1] * (width - columns + 1)).floor().minimum(width - columns)
    return torch.stack((top, left, rows, columns), dim=1)


def resized_crops(images: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """Crop each image by its own box, resize it bilinearly, mirror it where asked.

    Args:
        images: (N, 3, H, W) float32.
        boxes: (N, 4): top, left, height, width in pixels.
        flipped: (N,) bool: mirror left and right.
        size: Height and width of the result.

    Returns:
        (N, 3, size, size).
    """
    top, left, rows, columns = boxes.unbind(dim=1)
    y = _sampled(top, rows, images.shape[-2], size)
    x = _sampled(left, columns, images.shape[-1], size)
    x = torch.where(flipped[:, None], x.flip(1), x)
    grid = torch.stack((x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)), dim=3)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sampled(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """(N, size) sampled places along one axis, in `grid_sample`'s units: -1 and 1 are the image's outer edges."""
    start, length = start[:, None], length[:, None]
    places = start + (torch.arange(size, device=start.device) + 0.5) * (length / size)
    # The rim of a crop repeats its own pixels instead of mixing in what lies outside.
    places = places.maximum(start + 0.5).minimum(start + length - 0.5)
    return places * (2 / source) - 1


def recolor(
    images: Tensor, *, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, grey: Tensor
) -> Tensor:
    """Change the colours of each image by its own factors; 1, 1, 1, 0, False change nothing.

    In order: ``x * brightness``; contrast blends with the mean of the greyscale image, saturation with the greyscale
    image (as torchvision's `adjust_contrast` and `adjust_saturation`); hue rotates I and Q of YIQ; grey keeps the luma.

    Args:
        images: (N, 3, H, W) float32, RGB in [0, 1].
        brightness: (N,) factors.
        contrast: (N,) factors.
        saturation: (N,) factors.
        hue: (N,) turns; red goes to yellow with a positive sixth.
        grey: (N,) bool.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    device = images.device
    luma = torch.tensor(LUMA, device=device)
    to_grey = luma.expand(3, 3)
    forward = torch.tensor(_RGB_TO_YIQ, device=device)
    identity = torch.eye(3, device=device)
    saturate = torch.lerp(to_grey, identity, saturation[:, None, None])
    angle = -2 * math.pi * hue
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(hue), torch.ones_like(hue)
    rotate = torch.stack((one, zero, zero, zero, cos, -sin, zero, sin, cos), dim=1).view(-1, 3, 3)
    with torch.autocast(device.type, enabled=False):
        matrix = torch.linalg.inv(forward) @ rotate @ forward @ saturate
        matrix = torch.where(grey[:, None, None], to_grey @ matrix, matrix)
        mean = images.mean(dim=(2, 3)) @ luma
        offset = (matrix.sum(dim=2) * ((1 - contrast) * brightness * mean)[:, None])[:, :, None]
        matrix = matrix * (contrast * brightness)[:, None, None]
        colours = torch.baddbmm(offset, matrix, images.flatten(2))
    return colours.clamp_(0, 1).view_as(images)


def blurred(images: Tensor, sigma: Tensor, chosen: Tensor) -> Tensor:
    """Gaussian blur, each image by its own width.

    Args:
        images: (N, 3, H, W) float32.
        sigma: (N,) standard deviations in pixels, above 0.
        chosen: (N,) bool; the others stay as they are.

    Returns:
        (N, 3, H, W); every pixel is a weighted mean of pixels of its image.
    """
    rows, columns = (_blurring(sigma, chosen, side)[:, None] for side in images.shape[-2:])
    with torch.autocast(images.device.type, enabled=False):
        return rows @ images @ columns.mT


def _blurring(sigma: Tensor, chosen: Tensor, side: int) -> Tensor:
    """(N, side, side): row i holds the weights of the pixels that make pixel i."""
    place = torch.arange(side, device=sigma.device, dtype=torch.float32)
    distance = (place[:, None] - place) / sigma[:, None, None]
    weights = torch.softmax(-distance.square() / 2, dim=2)
    return torch.where(chosen[:, None, None], weights, torch.eye(side, device=sigma.device))


def solarised(images: Tensor, chosen: Tensor) -> Tensor:
    """Invert what is bright (0.5 or more), as torchvision's `solarize`, in the chosen images.

    Args:
        images: (N, 3, H, W) in [0, 1].
        chosen: (N,) bool.
    """
    return torch.where(chosen[:, None, None, None] & (images >= SOLARISED_FROM), 1 - images, images)


def cutmix(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Paste one box from other images of the batch (Yun et al., ICCV 2019), without labels: i-Mix's i-CutMix.

    Box and share are the same for the whole batch (Lee et al., "i-Mix", ICLR 2021): the share is uniform and at least a
    half goes to an image itself; the box is clipped at the rim, and the share is that of the clipped box.

    Args:
        images: (N, 3, H, W); not changed.
        generator: Of all randomness, on the CPU.

    Returns:
        The mixed images (N, 3, H, W); whose box each has got, (N,) int64 on the images' device; the share of an image
        that is its own, a half (but for whole pixels) to 1.
    """
    count, _, height, width = images.shape
    share, y, x = torch.rand(3, generator=generator).tolist()
    side = math.sqrt(1 - max(share, 1 - share)) / 2
    top, bottom = round(max(0.0, y - side) * height), round(min(1.0, y + side) * height)
    left, right = round(max(0.0, x - side) * width), round(min(1.0, x + side) * width)
    partner = torch.randperm(count, generator=generator).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, partner, 1 - (bottom - top) * (right - left) / (height * width)
