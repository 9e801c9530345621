from __future__ import annotations

import pytest
import torch

from sanitize.data import DeviceImages, ImageSet, batches
from sanitize.errors import ConfigError, DataError


def _set(count: int = 10) -> ImageSet:
    pixels = torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(images=pixels, labels=torch.arange(count) % 3, class_names=("a", "b", "c"), uri="here")


def test_every_sample_comes_once() -> None:
    generator = torch.Generator().manual_seed(0)
    shuffled = list(batches(10, 4, generator))
    assert [len(batch) for batch in shuffled] == [4, 4, 2]
    order = torch.cat(shuffled)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(10)) != order.tolist()
    assert [len(batch) for batch in batches(10, 4, generator, drop_last=True)] == [4, 4]
    assert list(batches(0, 4)) == []


def test_the_order_follows_the_generator() -> None:
    def order(seed: int) -> list[int]:
        return torch.cat(list(batches(50, 8, torch.Generator().manual_seed(seed)))).tolist()

    assert order(1) == order(1) != order(2)
    generator = torch.Generator().manual_seed(1)
    batches(50, 8, generator)  # drawn at the call: what is drawn next does not depend on when batches are taken
    used = generator.get_state()
    assert not torch.equal(used, torch.Generator().manual_seed(1).get_state())


def test_a_batch_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch size 0"):
        batches(5, 0)
    with pytest.raises(ConfigError, match="Lower the batch size"):
        batches(5, 8, drop_last=True)


def test_pixels_are_the_chosen_images_in_0_to_1() -> None:
    images = _set()
    data = DeviceImages(images, "cpu")
    chosen = torch.tensor([7, 2, 2])
    pixels = data.pixels(chosen)
    assert pixels.dtype == torch.float32
    assert torch.equal((pixels * 255).round().to(torch.uint8), images.images[chosen])
    assert torch.equal(data.pixels(slice(0, 3)), data.pixels(torch.arange(3)))
    assert len(data) == 10
    assert data.labels is not None and torch.equal(data.labels, images.labels)
    assert DeviceImages(images.without_labels(), "cpu").labels is None


def test_a_subset_keeps_labels_and_origin() -> None:
    images = _set()
    subset = images.subset(torch.tensor([4, 1]))
    assert subset.labels.tolist() == [1, 1] and subset.uri == "here" and subset.class_names == ("a", "b", "c")
    assert torch.equal(subset.images, images.images[[4, 1]])
    assert images.subset(slice(0, 10)).sha256 == images.sha256
    assert len(images.subset(images.labels == 0)) == 4
    with pytest.raises(DataError, match="empty"):
        images.subset(slice(10, 20))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_data_lies_on_the_device_as_bytes() -> None:
    data = DeviceImages(_set(), "cuda")
    assert data.pixels(torch.tensor([1, 2])).is_cuda
    assert torch.equal(data.pixels(slice(0, 10)).cpu(), DeviceImages(_set(), "cpu").pixels(slice(0, 10)))
