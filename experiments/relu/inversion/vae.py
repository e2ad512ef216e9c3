"""A small variational autoencoder, whose decoder is a ReLU network to be inverted."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from experiments.relu.training import Training, train
from iresflow.streams import NORMAL, Stream, draw
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Objective, Score, Terms

__all__ = ["Autoencoder", "EvidenceBound", "VariationalAutoencoder", "train_autoencoder"]


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


@final
class VariationalAutoencoder(nn.Module):
    """An encoder to mean and log variance of a code, and a decoder.

    Arguments:
        sizes: Of both.
        pixels: n of images ``(B, n)``.
    """

    def __init__(self, sizes: Autoencoder, pixels: int) -> None:
        super().__init__()
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


@final
@dataclass(frozen=True)
class EvidenceBound(Objective):
    """The negative evidence lower bound of images ``(B, n)``, up to a constant, in nats.

    Arguments:
        deviation: Of the Gaussian whose likelihood the squared error is.
    """

    deviation: float

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        return Terms(self._bound(model, batch.values, stream).mean())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        stream = torch.Generator(split.values.device).manual_seed(0)
        return Score(float(self._bound(model, split.values, stream).double().mean()))

    def _bound(self, model: nn.Module, x: Tensor, stream: Stream) -> Tensor:
        assert isinstance(model, VariationalAutoencoder)
        mean, log_variance = model.encoder(x).chunk(2, dim=1)
        like = {"device": mean.device, "dtype": mean.dtype}
        noise = draw(NORMAL, mean.shape, stream, batch=0, **like)
        code = mean + noise * (log_variance / 2).exp()
        misfit = (model.decoder(code) - x).square().sum(1) / (2 * self.deviation**2)
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
    model = VariationalAutoencoder(sizes, images.shape[1])
    train(model, images, None, EvidenceBound(sizes.deviation), training, title="autoencoder")
    return model.encoder, model.decoder
