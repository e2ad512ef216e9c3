"""Scores of outliers under a flow, fitted to samples that are inside, with their error bars.

``LogProb().fit(flow, x).score(others)`` is ``(B,)``, larger the more outlying; ``scores`` has the
error bars too. ``decide`` says which samples a threshold can't tell for their errors, and
`evaluate` how well scores tell two sets apart.
"""

from iresflow.ood.base import Composite, FittedScore, MeasuredScore, Panel, Score
from iresflow.ood.draws import Draws, Reads
from iresflow.ood.latent_fit import LatentFit
from iresflow.ood.likelihoods import Complexity, LogProb, Typicality
from iresflow.ood.local_dimension import LocalDimension
from iresflow.ood.ratio import LikelihoodRatio, Mutation
from iresflow.ood.score_norm import ScoreNorm
from iresflow.ood.scores import Decisions, Scores
from iresflow.ood.separation import Separation, evaluate
from iresflow.ood.states import Density, DensityOfStates
from iresflow.training.evaluation.single import Scoring

__all__ = [
    "Complexity",
    "Composite",
    "Decisions",
    "Density",
    "DensityOfStates",
    "Draws",
    "FittedScore",
    "LatentFit",
    "LikelihoodRatio",
    "LocalDimension",
    "LogProb",
    "MeasuredScore",
    "Mutation",
    "Panel",
    "Reads",
    "Score",
    "ScoreNorm",
    "Scores",
    "Scoring",
    "Separation",
    "Typicality",
    "evaluate",
]
