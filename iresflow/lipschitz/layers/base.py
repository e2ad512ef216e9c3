r"""The base of linear layers whose operator norm is held below a coefficient by construction.

The weight that acts is :math:`\tilde W = W \min(1, c / \sigma)` (thesis, eq. 4.9). In a training
step :math:`\sigma` is what the layer's `Normalization` says of the norm of W, and the gradient
flows through it. Everywhere else it is the *settled* norm, a function of the weight and of the
iteration's vector. That is the buffer ``sigma`` where this belongs to the weight, as after
loading, `NormalizedLayer.settle` and `NormalizedLayer.enforce`; and otherwise an estimate, made
when it is first asked for. In eval mode it is a constant from then on, whatever becomes of the
weight, and bounds are those of the weight that acts. `enforce` puts a rigorous upper bound of the
norm into the buffer: until the weight changes, the layer's certified bound is at most c.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from iresflow.derivatives import first_order
from iresflow.errors import DerivativeError, NotContractiveError
from iresflow.lipschitz.bounds.base import Bound, LipschitzMap
from iresflow.lipschitz.bounds.induced import induced_bounds
from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.estimates import normalized
from iresflow.lipschitz.layers.form import Bounds, Form
from iresflow.lipschitz.layers.normalization import Normalization
from iresflow.lipschitz.layers.operator import OperatorFamily
from iresflow.lipschitz.layers.rounding import entry_errors, scaling_error
from iresflow.lipschitz.layers.watch import OnHost, Watch, outside_transforms, version
from iresflow.tensors import transformed

__all__ = ["NormalizedLayer"]

SECOND = (
    "in training mode the gradient of a weight goes through an estimate of its norm, whose own "
    "gradient has no derivatives: call eval(), where norms are constants, or differentiate once"
)

SEED = 0
"""Of the iteration's first vector: a new layer takes nothing from a random stream for it."""


class NormalizedLayer(nn.Module, OperatorFamily, LipschitzMap, ABC):
    """A linear layer ``x -> A x + b`` with a bounded operator norm.

    Attributes:
        amplification: Upper bound of the norm of what extends the input before the weight acts.

    Arguments:
        weight: The initial raw weight.
        outputs: The number of bias entries.
        left_shape: Shape of one vector of the operator's range, for the power iteration.
        coeff: The norm's upper limit c, in (0, 1).
        normalization: What training divides the weight by.
        form: What acts of the normalised weight.

    Raises:
        ValueError: coeff is not in (0, 1).
    """

    amplification: float = 1.0

    def __init__(
        self,
        weight: Tensor,
        outputs: int,
        left_shape: tuple[int, ...],
        coeff: float,
        normalization: Normalization,
        form: Form,
    ) -> None:
        super().__init__()
        if not 0 < coeff < 1:
            raise ValueError(
                f"coeff must lie strictly between 0 and 1, got {coeff}: a branch whose layers "
                "reach norm 1 need not be contractive, so its block need not be invertible"
            )
        self.coeff = coeff
        self.normalization = normalization
        self.weight = nn.Parameter(weight)
        self.form = form
        self.bias = nn.Parameter(torch.zeros(form.outputs(outputs)))
        self.left: Tensor
        self.sigma: Tensor
        self.register_buffer("left", _start(left_shape))
        self.register_buffer("sigma", torch.ones(()))
        # Each with the weight that it belongs to.
        self._owner: Watch | None = None  # of sigma
        self._step: tuple[Tensor, tuple[int, int] | None] | None = None
        self._settled: tuple[Tensor, Watch] | None = None
        self._frozen: Tensor | None = None  # what eval mode divides by since it was first asked
        self._raw: tuple[Bound, Watch] | None = None
        self._on_host = OnHost()  # the norm in action
        self._bounds: tuple[Bound, float, Bounds] | None = None

    @abstractmethod
    def taps(self) -> tuple[Tensor, Tensor, Tensor]:
        """The raw weight as a kernel ``(D, C, k, k)``, and its taps along both axes of an image.

        See `iresflow.lipschitz.bounds.induced.entry_bounds`.
        """

    # The weight that acts.

    def normalize(self) -> Tensor:
        """The weight for a forward pass, with its norm held at c; attached to the graph.

        In training mode with gradients on, that is a training step: the norm is computed anew,
        which moves the power iteration on, and the gradient flows through it. Otherwise as
        `normalized_weight`.
        """
        if not (self.training and torch.is_grad_enabled()):
            return self.normalized_weight()
        norm = self.normalization.norm(self, self.weight, self.left).to(self.weight.dtype)
        self._step = (norm.detach(), version(self.weight))
        if not transformed():
            norm = first_order(norm, DerivativeError(SECOND))
        return self.form.acting(self.weight * self._scale(norm))

    def normalized_weight(self) -> Tensor:
        """The weight that acts; attached to the graph of the raw one, its norm a constant.

        In training mode with gradients on, that is the weight of the last step; everywhere else,
        and where the raw weight has changed since, the one that eval mode applies.
        """
        return self.form.acting(self.weight * self._scale(self._norm()))

    def train(self, mode: bool = True) -> Self:
        if mode != self.training:
            self.look_again()  # an optimiser may write to a weight without counting it
        if mode:
            self._frozen = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.normalize(), self.bias)(x)

    @torch.no_grad()
    def settle(self) -> None:
        """Stores the settled norm, so that ``sigma`` belongs to the weight as it is now."""
        self.look_again()
        self._own(self._settled_norm())

    @torch.no_grad()
    def sharpen(self) -> None:
        """Moves the iteration on until the norm has settled, for the training steps that follow.

        The optimiser may have moved the weight further than one step of the iteration follows.
        """
        self.normalization.settled(self, self.weight, self.left)

    @torch.no_grad()
    def enforce(self) -> None:
        """Stores a certified norm of the raw weight: the layer's bound is at most c from then on.

        The raw weight, which training moves, stays as it is.

        Raises:
            NotContractiveError: the type of float can't hold the norm.
        """
        self.look_again()
        tight = self._raw_bound().upper
        upper = self.normalization.enforced(self, self.weight, tight)
        upper += scaling_error(self.weight) * self.amplification
        info = torch.finfo(self.sigma.dtype)
        upper *= 1 + 16 * info.eps
        if info.max < upper < math.inf:
            raise NotContractiveError(
                f"a layer with a weight of shape {tuple(self.weight.shape)} has a norm of up to "
                f"{upper:.3g}, and {self.sigma.dtype} ends at {info.max:.3g}"
            )
        self._own(self.sigma.new_tensor(upper))

    # Bounds.

    def bound(self, domain: float = 2.0, codomain: float = 2.0) -> Bound:
        """Certified bound of the layer with `normalized_weight`, from one p-norm to another.

        Arguments:
            domain, codomain: Of `NORMS`.
        """
        return self.bounds()[domain, codomain]

    def bounds(self) -> Bounds:
        """Certified bounds of the layer with `normalized_weight`, by norms of domain and range."""
        return self.form.bounds(self._scaled_bounds())

    def bounds_after(self, activation: Activation | None) -> Bounds:
        """The same for an activation and the layer after it, as one map."""
        return self.form.bounds_after(self._scaled_bounds(), activation)

    def _scaled_bounds(self) -> Bounds:
        """Of the weight that was scaled: the same dictionary until the layer changes."""
        scale = float(self._scale(self._on_host.copy(self._norm())).detach())
        raw = self._raw_bound()
        if self._bounds is None or self._bounds[0] is not raw or self._bounds[1] != scale:
            error = scaling_error(self.weight, scale) * self.amplification
            upper = (raw.upper + error) * scale * (1 + 1e-15)
            spectral = Bound(upper, raw.estimate * scale, raw.method)
            with torch.no_grad():
                errors = entry_errors(self.weight.dtype, scale)
                every = induced_bounds(self.taps(), spectral, scale, errors)
            self._bounds = (raw, scale, every)
        return self._bounds[2]

    def look_again(self) -> None:
        """Makes the next bound compare the whole weight with what is remembered of it.

        In between, a write through ``.data`` is noticed by a few entries only.
        """
        watches = [self._on_host, self._owner, *(p[1] for p in (self._settled, self._raw) if p)]
        for watch in watches:
            if watch is not None:
                watch.look_again()

    @torch.no_grad()
    def _raw_bound(self) -> Bound:
        """Certified bound of the raw weight's norm."""
        self._distrust()
        if self._raw is None or not self._raw[1].unchanged(self.weight):
            watch = Watch(self.weight)
            self._raw = (self.tight_bound(self.weight, self.left), watch)
        return self._raw[0]

    # The norms in action.

    def _norm(self) -> Tensor:
        if self.training and torch.is_grad_enabled() and self._step is not None:
            norm, counted = self._step
            if counted == version(self.weight):
                return norm
        return self._settled_norm()

    @torch.no_grad()
    def _settled_norm(self) -> Tensor:
        if self.training:
            return self._norm_of_weight()
        if self._frozen is None:
            self._frozen = self._norm_of_weight()
        return self._frozen

    def _norm_of_weight(self) -> Tensor:
        if self.weight.is_meta:  # a shape without numbers
            return self.sigma
        self._distrust()
        if self._owner is not None and self._owner.unchanged(self.weight):
            return self.sigma
        if self._settled is None or not self._settled[1].unchanged(self.weight):
            watch = Watch(self.weight)
            with outside_transforms():  # it is kept for calls that are under none
                norm = self.normalization.settled(self, self.weight, self.left.clone())
                self._settled = (norm.to(self.sigma), watch)
        return self._settled[0]

    def _distrust(self) -> None:
        """In training mode an optimiser may have written to the weight without counting it.

        A CPU shows it by some entries; see `iresflow.lipschitz.layers.watch`.
        """
        if self.training and self.weight.device.type != "cpu":
            self.look_again()

    def _own(self, norm: Tensor) -> None:
        self.sigma.copy_(norm)
        self._owner, self._frozen = Watch(self.weight), None

    # State: a stored norm is that of the weight beside it.

    def _save_to_state_dict(self, into: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(into, prefix, keep_vars)
        settled = self._settled_norm()
        into[f"{prefix}sigma"] = settled if settled is self.sigma else settled.clone()

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        if f"{prefix}sigma" in state:
            self._owner, self._frozen = Watch(self.weight), None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves to a device or a type of float; a norm that belongs to the weight still does."""
        owned = self._owner is not None and self._owner.unchanged(self.weight)
        super()._apply(fn, recurse)
        if owned:
            self._owner, self._frozen = Watch(self.weight), None
        elif self._frozen is not None:
            self._frozen = fn(self._frozen)
        return self

    def _scale(self, sigma: Tensor) -> Tensor:
        return self.form.scaled(self.coeff / sigma.clamp_min(self.coeff))

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, coeff={self.coeff}, {self.normalization}"


def _start(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(shape, generator=generator, dtype=torch.get_default_dtype(), device="cpu")
    return normalized(start).to(torch.empty(0).device)  # the default one
