"""What learned operators are trained on: closeness, penalties, and their inverse."""

import torch

from experiments.inverse_problems.learned_problems import (
    FILTERS,
    Problem,
    Spectrum,
    deviation_of,
    measured,
)
from experiments.inverse_problems.learned_training import (
    best_errors,
    inverse_of,
    relative_error,
    train_operator,
)
from iresflow.commands.report import Report
from iresflow.inverse_problems import (
    Approximation,
    DivergencePenalty,
    LogDetPenalty,
    Reconstruction,
)
from iresflow.training.objectives.base import Objective

__all__ = ["compare_objectives"]


def compare_objectives(
    problem: Problem, report: Report, *, limit: float, noise: float, steps: int, seed: int
) -> None:
    """Objectives at one limit and one relative noise, and linear maps beside them."""
    operator = problem.operator
    deviation = deviation_of(problem, noise)
    in_z = deviation / operator.norm
    objectives: dict[str, Objective] = {
        "approximation": Approximation(operator),
        "approximation, divergence": Approximation(operator, (DivergencePenalty(in_z),)),
        "approximation, log-det": Approximation(operator, (LogDetPenalty(in_z),)),
        "reconstruction": Reconstruction(operator, deviation, tol=1e-4),
    }
    options = {"batch_size": 64, "learning_rate": 1e-2, "steps": steps}
    z = measured(problem, noise, seed)
    rows = []
    for name, objective in objectives.items():
        torch.manual_seed(seed)
        net = problem.networks["network"](limit)
        where = report.path / f"objective-{name.replace(', ', '-')}"
        train_operator(net, problem, where, objective, seed, options)
        error = relative_error(inverse_of(net)(z), problem.test)
        of_map = relative_error(net(problem.test).detach(), operator(problem.test))
        rows.append({"method": name, "error": error, "error of F": of_map})
    spectrum = Spectrum.of(problem)
    for name in FILTERS:
        (error,) = best_errors(problem, spectrum, name, [z])
        rows.append({"method": f"{name}, best", "error": error, "error of F": None})
    report.table(
        "objectives",
        rows,
        f"Objectives, L = {limit:g}, relative noise {noise:g}: mean relative error of "
        "reconstructions, and of F(x) as an approximation of K x.",
    )
