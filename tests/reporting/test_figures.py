from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

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
