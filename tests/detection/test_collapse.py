"""Feature collapse as a detector: tells the backdoored encoder from clean ones, by the same seed, with its options."""

from __future__ import annotations

import pytest
import torch

from sanitize.data import ImageSet
from sanitize.detection.catalogue import MODEL_DETECTORS, model_detector_named
from sanitize.detection.collapse import FeatureCollapse
from sanitize.errors import ConfigError, DataError
from sanitize.training import Engine
from tests.encoders import defender_images, small_encoder


def examined(network, **options):
    return FeatureCollapse(**options).examine(network, defender_images(), Engine(device="cpu")).metrics


@pytest.mark.slow
def test_the_backdoored_encoder_stands_out_from_the_clean_one(encoders):
    clean, backdoored = examined(encoders.clean), examined(encoders.backdoored)
    assert backdoored["collapse_patch"] > clean["collapse_patch"] + 0.3
    assert backdoored["collapse_perturbation"] > clean["collapse_perturbation"] + 0.5


def test_options_seed_and_pictures():
    network = small_encoder()
    first = FeatureCollapse(steps=2).examine(network, defender_images(), Engine(device="cpu"))
    assert first.metrics == examined(network, steps=2)
    assert first.metrics != examined(network, steps=4)
    assert first.metrics != examined(network, steps=2, batch_size=32)
    assert first.metrics != examined(network, steps=2, starts=3)
    other = FeatureCollapse(steps=2).examine(network, defender_images(), Engine(device="cpu", seed=1))
    assert first.metrics != other.metrics
    assert set(first.pictures) == {"perturbation", "patch"}
    for picture in first.pictures.values():
        assert picture.shape == (3, 32, 32)
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    assert set(FeatureCollapse.alarming) <= set(first.metrics)


def test_the_network_is_left_unchanged():
    network = small_encoder()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    examined(network, steps=1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_too_few_images():
    few = ImageSet(images=defender_images().images[:63])
    with pytest.raises(DataError, match="at least 64"):
        FeatureCollapse().examine(small_encoder(), few, Engine(device="cpu"))


def test_every_detector_is_found_by_its_name():
    for name, detector in MODEL_DETECTORS.items():
        assert model_detector_named(name) is detector
    with pytest.raises(ConfigError, match="Did you mean decree"):
        model_detector_named("decre")
