"""Random changes of images: which they are, how often, in parts as in the whole, their cost."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from iresflow.data.images.augment import Augmentation, Crop, Flip, Shift, unchanged
from iresflow.streams import PartialStream

AUGMENTATIONS = [Flip(), Shift(1), Shift(2, "nearest"), Shift(3, "mirror"), Crop(3), Crop(5)]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 2, 5, 7), dtype=torch.uint8, generator=stream(9))


def copies(count: int) -> Tensor:
    return images(1).expand(count, -1, -1, -1)


def padded(image: np.ndarray, pixels: int, border: str) -> np.ndarray:
    mode = {"black": "constant", "nearest": "edge", "mirror": "reflect"}[border]
    return np.pad(image, [(0, 0), (pixels, pixels), (pixels, pixels)], mode=mode)


def possible(augmentation: Augmentation) -> list[bytes]:
    """All that can become of an image, by NumPy."""
    image = images(1)[0].numpy()
    if isinstance(augmentation, Flip):
        return [image.tobytes(), image[:, :, ::-1].tobytes()]
    if isinstance(augmentation, Crop):
        size, source = (augmentation.size, augmentation.size), image
    else:
        assert isinstance(augmentation, Shift)
        size, source = (5, 7), padded(image, augmentation.pixels, augmentation.border)
    tops, lefts = (range(source.shape[i + 1] - size[i] + 1) for i in (0, 1))
    return [
        source[:, top : top + size[0], left : left + size[1]].tobytes()
        for top, left in itertools.product(tops, lefts)
    ]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_all_that_is_possible_comes_equally_often(augmentation: Augmentation) -> None:
    count, outcomes = 20_000, possible(augmentation)
    changed = augmentation(copies(count), stream())
    assert changed.dtype == torch.uint8
    found = [image.tobytes() for image in changed.numpy()]
    counts = np.array([found.count(outcome) for outcome in outcomes])
    assert len(set(outcomes)) == len(outcomes) and counts.sum() == count
    share = 1 / len(outcomes)
    error = np.sqrt(share * (1 - share) / count) + 1e-12
    assert (np.abs(counts / count - share) < 4 * error).all()
    if len(outcomes) > 1:  # the control: one outcome a fifth too often
        assert abs(1.2 * counts[0] / count - share) > 4 * error
    if not isinstance(augmentation, Crop):
        assert augmentation.cost == pytest.approx(math.log(len(outcomes)))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_parts_of_a_batch_change_as_the_whole(augmentation: Augmentation) -> None:
    batch = images(12)
    whole = augmentation(batch, stream())
    parts = [
        augmentation(batch[first : first + 4], PartialStream(stream(), 12, first))
        for first in (0, 4, 8)
    ]
    assert torch.cat(parts).equal(whole)
    assert not augmentation(batch, stream(1)).equal(whole)


@pytest.mark.parametrize("augmentation", [Flip(), Shift(1), Shift(2, "nearest")])
def test_the_cost_bounds_what_unchanged_images_lose(augmentation: Augmentation) -> None:
    # The mixture itself over some images, by counting: the best that could be learned.
    batch = images(6)
    mixture: dict[bytes, float] = {}
    draws = 4000
    for image in batch:
        for changed in augmentation(image.expand(draws, -1, -1, -1), stream()).numpy():
            key = changed.tobytes()
            mixture[key] = mixture.get(key, 0.0) + 1 / (draws * len(batch))
    lost = np.mean([math.log(1 / 6) - math.log(mixture[x.tobytes()]) for x in batch.numpy()])
    share = math.exp(-augmentation.cost)
    error = 4 * np.sqrt((1 - share) / (share * draws * len(batch)))
    assert lost == pytest.approx(augmentation.cost, abs=error)


def test_scores_are_of_the_middle_window() -> None:
    changes = (Crop(3), Flip(), Shift(1))
    assert unchanged(images(2), changes).equal(images(2)[:, :, 1:4, 2:5])
    with pytest.raises(ValueError, match="no window of 6"):
        unchanged(images(2), (Crop(6),))


@pytest.mark.parametrize("make", [lambda: Shift(0), lambda: Shift(1, "grey"), lambda: Crop(0)])
def test_wrong_arguments(make: object) -> None:
    with pytest.raises(ValueError, match="allowed"):
        make()


@pytest.mark.parametrize("augmentation", [Shift(5), Crop(6)])
def test_images_that_are_too_small(augmentation: Augmentation) -> None:
    with pytest.raises(ValueError, match="images of 5 x 7"):
        augmentation(images(2), stream())
    with pytest.raises(ValueError, match="images of 5 x 7"):
        unchanged(images(2), (augmentation,))
