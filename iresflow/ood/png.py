"""How long a general lossless code of an image is."""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iresflow.models import Flow, ImageFlow

__all__ = ["png_nats"]

LEVELS = 256
"""Grey levels that a PNG file of 8 bits holds."""


def png_nats(flow: Flow, images: Tensor) -> Tensor:
    """Lengths of the images' PNG files in nats, ``(B,)`` float64: bits times log 2.

    One or three channels are a picture as they are; others are put one below the other.

    Arguments:
        flow: Whose images they are.
        images: Integers ``(B, C, H, W)``.

    Raises:
        ValueError: the flow is of no images, or of more than 256 grey levels.
    """
    if not isinstance(flow, ImageFlow) or flow.levels > LEVELS:
        what = f"{flow.levels} levels" if isinstance(flow, ImageFlow) else "no images"
        raise ValueError(
            f"PNG is a code of images with up to {LEVELS} grey levels; this flow is of {what}"
        )
    pixels = images.cpu().numpy().astype(np.uint8)
    nats = [8 * math.log(2) * _bytes(image) for image in pixels]
    return torch.tensor(nats, dtype=torch.float64, device=images.device)


def _bytes(image: np.ndarray) -> int:
    file = io.BytesIO()
    grey = image.reshape(-1, image.shape[2]) if len(image) != 3 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(grey)).save(file, "png", optimize=True)
    return file.tell()
