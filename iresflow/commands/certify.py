"""``iresflow certify``: is a trained model provably invertible?"""

from collections.abc import Sequence

from iresflow.commands.arguments import add_run_arguments, new_parser, parse
from iresflow.training.build import resolve_device
from iresflow.training.checkpoint import find_checkpoint, load_model

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns 0 only if every block is certified."""
    parser = new_parser("certify", "Prints the certified Lipschitz bound of each residual block.")
    add_run_arguments(parser)
    options = parse(parser, arguments)
    path = find_checkpoint(options.run, options.checkpoint)
    model, _ = load_model(path, resolve_device(options.device))
    certificate = model.certify()
    print(certificate)
    return 0 if certificate else 1
