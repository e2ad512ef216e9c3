"""A small variational autoencoder, whose decoder is a ReLU network to be inverted."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from iresflow.relu.training import Training, fit

__all__ = ["Autoencoder", "train_autoencoder"]


@final
@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """Its sizes and its loss.

    Arguments:
        latent: Dimension k of the code.
        hidden: Hidden units of the decoder.
        encoder: Hidden units of the encoder, which nobody inverts.
        slope: Negative slope of the decoder's layers, the last one included; 0 for ReLU.
        deviation: Of the Gaussian whose likelihood the squared error is.
    """

    latent: int = 20
    hidden: tuple[int, ...] = (60,)
    encoder: int = 400
    slope: float = 0.2
    deviation: float = 0.1


class _Model(nn.Module):
    def __init__(self, sizes: Autoencoder, pixels: int) -> None:
        super().__init__()
        self.latent, self.deviation = sizes.latent, sizes.deviation
        self.encoder = nn.Sequential(
            nn.Linear(pixels, sizes.encoder), nn.ReLU(), nn.Linear(sizes.encoder, 2 * sizes.latent)
        )
        parts: list[nn.Module] = []
        widths = (sizes.latent, *sizes.hidden, pixels)
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            activation = nn.LeakyReLU(sizes.slope) if sizes.slope else nn.ReLU()
            parts += [nn.Linear(before, after), activation]
        self.decoder = nn.Sequential(*parts)
        # A pixel that is 0 everywhere at the start would get no gradient ever.
        nn.init.constant_(self.decoder[-2].bias, 0.1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The negative evidence lower bound of images ``(B, n)``, up to a constant, ``(B,)``."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        misfit = (self.decoder(code) - x).square().sum(1) / (2 * self.deviation**2)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return misfit + divergence


def train_autoencoder(
    sizes: Autoencoder, images: Tensor, training: Training
) -> tuple[nn.Sequential, nn.Sequential]:
    """Trains on images ``(N, n)`` in [0, 1].

    Returns:
        The encoder, whose output begins with the k means of the code, and the decoder, in eval
        mode.

    Raises:
        NonFiniteError: the loss is not finite.
    """
    model = _Model(sizes, images.shape[1])

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return module(batch[0]).mean()

    fit(model, (images,), loss, training, title="autoencoder")
    return model.encoder.eval(), model.decoder.eval()
