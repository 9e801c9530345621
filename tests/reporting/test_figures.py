from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanitize.reporting.figures import losses, picture, projection
from tests.reporting.samples import figures

ROOT = Path(__file__).parents[2]


def _open(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def test_the_same_input_gives_the_same_bytes_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = figures(), figures()
    assert [figure.png for figure in first] == [figure.png for figure in second]
    assert torch.equal(torch.get_rng_state(), state)
    for figure in first:
        assert figure.alt
        assert figure.title
        assert _open(figure.png).width > 200


def test_no_pyplot():
    script = "import sys, sanitize.reporting.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 0


def test_rendering_needs_no_torch_and_no_matplotlib():
    script = "import sys, sanitize.reporting; sys.exit(bool({'torch', 'matplotlib', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 0


def test_projection_says_how_far_the_triggered_features_are():
    clean = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    shifted = clean + torch.tensor([0.0, 0.0, 3.0])
    figure = projection({"clean": clean, "triggered": shifted}, {"clean": clean, "triggered": clean})
    assert "3.00 before, 0.00 after" in figure.alt
    assert "its own encoder" in figure.title


@pytest.mark.parametrize("count", [1, 2, 5000])
@pytest.mark.parametrize("size", [1, 2, 512])
def test_projection_takes_any_number_of_features(count: int, size: int):
    features = torch.randn(count, size, generator=torch.Generator().manual_seed(0))
    _open(projection({"clean": features, "triggered": features}, {"clean": features}).png)


def pointable_figure(image_size=32):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(50, 8, generator=generator)
    clean[17] *= 20
    triggered = clean + 9
    shown = torch.rand(50, 3, image_size, image_size, generator=generator)
    pictures = {"clean": shown.__getitem__, "triggered": lambda row: 1 - shown[row]}
    return projection({"clean": clean, "triggered": triggered}, {"clean": clean, "triggered": clean}, pictures), shown


def test_what_lies_farthest_out_shows_its_image():
    figure, shown = pointable_figure()
    points = re.findall(
        r'aria-label="(clean|triggered) image (\d+): ([\d.]+) clean spreads.*?base64,([^"]+)"', figure.markup
    )
    assert len(points) == 2 * 2 * 8
    assert points[0][:2] == ("clean", "17")
    distances = [float(distance) for _, _, distance, _ in points[:8]]
    assert distances == sorted(distances, reverse=True)
    for group, row, _, data in (points[0], points[8]):
        image = shown[int(row)] if group == "clean" else 1 - shown[int(row)]
        seen = np.asarray(_open(base64.b64decode(data)))
        assert np.abs(seen.transpose(2, 0, 1) - 255 * image.numpy()).max() <= 0.51


def test_embedded_images_are_small_and_numbers_are_finite():
    markup = pointable_figure(image_size=224)[0].markup
    assert len(markup) < 1_000_000
    assert "nan" not in markup.split("base64")[0]
    flat = torch.ones(3, 4)
    assert projection({"clean": flat}, {"clean": flat}, {"clean": lambda row: torch.zeros(3, 8, 8)}).markup


def test_without_images_there_is_only_the_picture():
    features = torch.rand(5, 4)
    assert projection({"clean": features}, {"clean": features}).markup == ""
    assert projection({"clean": features}, {"clean": features}, {}).markup == ""


def test_projection_without_features_and_with_a_hostile_group():
    assert projection({}, {}).png
    assert projection({"clean$\\frac{": torch.rand(3, 4)}, {"clean$\\frac{": torch.rand(3, 4)}).png


def test_projection_of_constant_features():
    assert projection({"clean": torch.ones(5, 4), "triggered": torch.ones(5, 4)}, {"clean": torch.zeros(5, 4)}).png


def test_losses_of_nothing_one_epoch_and_broken_values():
    assert losses({}).alt.startswith("No losses")
    figure = losses({"implant$^": [{"total": 1.0, "epoch": 0, "$x": float("nan")}], "unlearn": []})
    assert "total 1 to 1" in figure.alt
    assert "unlearn: no values" in figure.alt
    assert _open(figure.png).width > _open(losses({"one": []}).png).width


def test_picture_keeps_its_pixels():
    image = torch.zeros(3, 2, 4)
    image[0, 0, 0] = 1.0
    shown = _open(picture("patch", image, "A patch").png).convert("RGB")
    assert shown.width == 2 * shown.height
    width, height = shown.size
    assert shown.getpixel((width // 8, height // 4)) == (255, 0, 0)
    assert shown.getpixel((width // 8 * 3, height // 4)) == (0, 0, 0)
