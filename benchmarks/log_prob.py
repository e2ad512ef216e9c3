"""Log-densities of the digits by a trained run: time and error of the default and of estimators.

    OMP_NUM_THREADS=1 python benchmarks/log_prob.py RUN
    OMP_NUM_THREADS=1 python benchmarks/log_prob.py RUN --n 250 1 --repeats 9

Times are the least and the median of the processor's in some calls. Errors are root mean squares
over the digits against exact log-densities in float64, all of the same dequantised digits. The
script needs nothing that the first edition lacks: a checkout of it can be timed beside this one.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch

import iresflow
from iresflow import Exact, Krylov
from iresflow.data import load_dataset
from iresflow.training.checkpoint import load_model

ESTIMATORS = {
    "default": None,
    "exact": Exact(),
    "Krylov, 1 probe": Krylov(tol=1e-3, probes=1),
    "Krylov, 2 probes": Krylov(tol=1e-5, probes=2),
}


@torch.no_grad()
def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a run of the preset digits")
    parser.add_argument("--n", type=int, nargs="+", default=[250, 1], help="digits in a call")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    iresflow.compile_kernels()
    checkpoint = arguments.run / "checkpoints" / "best.pt"
    flow = load_model(checkpoint, torch.device("cpu"))[0].eval()
    digits = load_dataset("digits").test.values[: max(arguments.n)]
    noise = torch.rand(digits.shape, generator=torch.Generator().manual_seed(0))
    x = (digits + noise) / 17
    exact = copy.deepcopy(flow).double().log_prob(x.double(), log_det=Exact())
    head = f"{'digits at once':>14}  {'log-determinant':<18} {'ms, least':>10} {'median':>8}"
    print(f"{head} {'rms, nats':>10}")
    for n in arguments.n:
        for name, estimator in ESTIMATORS.items():
            options = {} if estimator is None else {"log_det": estimator}
            seconds = []
            for _ in range(arguments.repeats):
                began = time.process_time()
                found = flow.log_prob(x[:n], **options)
                seconds.append(time.process_time() - began)
            error = float((found - exact[:n]).square().mean().sqrt())
            least, median = 1000 * min(seconds), 1000 * statistics.median(seconds)
            print(f"{n:14d}  {name:<18} {least:10.2f} {median:8.2f} {error:10.1e}")


if __name__ == "__main__":
    main()
