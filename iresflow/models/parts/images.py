"""What integer images a model takes."""

from torch import Tensor

from iresflow.tensors import require_tensor

__all__ = ["require_integers"]


def require_integers(images: Tensor, shape: tuple[int, ...], levels: int) -> None:
    """Raises a ValueError where these are no integer images of a model.

    Arguments:
        images: ``(B, C, H, W)``, integers 0 .. levels - 1.
        shape: (C, H, W).
        levels: Grey levels.
    """
    require_tensor("images", images)
    if images.is_floating_point() or images.is_complex():
        raise ValueError(
            f"dequantize takes integers 0 .. {levels - 1}, got {images.dtype}; floats in [0, 1) "
            "go to log_prob as they are"
        )
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"this model takes images of shape (B, {', '.join(map(str, shape))}), got "
            f"{tuple(images.shape)}"
        )
    images = images.long()  # of unsigned integers, torch knows no extremes
    if len(images) and not 0 <= int(images.min()) <= int(images.max()) < levels:
        raise ValueError(
            f"this model takes integers 0 .. {levels - 1}, got {int(images.min())} .. "
            f"{int(images.max())}"
        )
