"""What ``iresflow sample`` says of its inverses."""

from jsonargparse import Namespace

from iresflow.bijections import Accuracy
from iresflow.models import FlowInverse
from iresflow.models.inversion import residual_tolerance

__all__ = ["accuracy_of", "print_solver"]


def accuracy_of(options: Namespace) -> Accuracy | None:
    """What ``--tol`` asks for."""
    return None if options.tol is None else Accuracy(options.tol)


def print_solver(result: FlowInverse, dim: int, options: Namespace) -> None:
    """Prints the largest errors of some inverses, and what they took."""
    error, limit = float(result.block_error.max()), float(result.limit.max())
    residual = float(result.residual.max())
    allowed = residual_tolerance(accuracy_of(options) or Accuracy(), dim)
    floor, rounded = "", ""
    if options.tol is not None and limit > options.tol:
        floor = f"; NOT --tol {options.tol:.1e}: the floor of the float type is {limit:.1e}"
    if residual > allowed:
        rounded = f"; above {allowed:.1e} by the rounding of x to its float type"
    print(
        f"solver steps         {float(result.steps.float().mean()):.1f} branch evaluations a "
        f"sample, at most {int(result.steps.max())}\n"
        f"certified error      {error:.2e}, the largest of any block{floor}\n"
        f"worst case           {float(result.worst_case.max()):.2e} in x, if each block amplified "
        "as much as its bound allows\n"
        f"measured residual    {residual:.2e} in latent space, Euclidean, after at most "
        f"{int(result.sweeps.max())} sweeps{rounded}"
    )
