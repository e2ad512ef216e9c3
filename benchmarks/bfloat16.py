"""How far series products in bfloat16 move the gradient, on a trained model of images.

The same probes for both types: what the mean over draws keeps is bias, the rest is noise.

    python benchmarks/bfloat16.py runs/0000-mnist-small --root DIR
"""

import argparse

import torch
from torch import Tensor

from iresflow import ImageFlow, PowerSeries, ReducedPrecision
from iresflow.data import load_dataset
from iresflow.logdet import LogDetEstimator
from iresflow.training.checkpoint import find_checkpoint, load_model


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--root")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--terms", type=int, default=9)
    args = parser.parse_args()
    flow, _ = load_model(find_checkpoint(args.run), torch.device("cpu"))
    assert isinstance(flow, ImageFlow)
    images = load_dataset(args.data, args.root).test.values[: args.n]
    x = flow.dequantize(images, torch.Generator().manual_seed(0))
    flow.train()
    state = {name: value.clone() for name, value in flow.state_dict().items()}

    def gradient(estimator: LogDetEstimator, seed: int) -> Tensor:
        flow.load_state_dict(state)  # the norms, which each step moves
        flow.zero_grad()
        probes = torch.Generator().manual_seed(seed)
        flow.log_prob(x, log_det=estimator, generator=probes).mean().backward()
        found = [p.grad.flatten() for p in flow.parameters() if p.grad is not None]
        return torch.cat(found).double()

    series = PowerSeries(args.terms)
    wide = [gradient(series, seed) for seed in range(args.draws)]
    narrow = [gradient(ReducedPrecision(series), seed) for seed in range(args.draws)]
    size = torch.stack(wide).mean(0).norm()
    moved = torch.stack(narrow) - torch.stack(wide)
    bias, single = float(moved.mean(0).norm() / size), float(moved.norm(dim=1).mean() / size)
    print(
        f"relative to the gradient: bias {bias:.1e} over {args.draws} draws, a single draw "
        f"{single:.1e}; torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
