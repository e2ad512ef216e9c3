"""The rows of benchmarks/ablation.py: what each changes of the defaults.

A variant is an overlay of options, by their names on the command line. Groups stand together in
the table, each beside the base, which is the row without a change.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from iresflow.training.config import Config, DataConfig, LogDetConfig, ModelConfig, TrainingConfig

__all__ = ["BASE", "VARIANTS", "Variant", "changed"]

SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "log_det": LogDetConfig,
    "training": TrainingConfig,
}


@dataclass(frozen=True)
class Variant:
    """One row.

    Attributes:
        group: What the row is about.
        changes: Options by name, such as ``model.hidden``.
    """

    group: str
    changes: Mapping[str, Any]


def _one(group: str, option: str, *values: object) -> dict[str, Variant]:
    """A row for each value of one option."""
    return {f"{group} {_shown(value)}": Variant(group, {option: value}) for value in values}


def _shown(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kernels(*shapes: tuple[int, ...]) -> dict[str, Variant]:
    return _one("kernels", "model.kernels", *shapes)


def _fall(schedule: str, part: float) -> Variant:
    return Variant("decay", {"training.schedule": schedule, "training.decay_steps": part})


def _blocks(row: str, counts: tuple[int, ...] | float) -> dict[str, Variant]:
    return {f"blocks {row}": Variant("blocks", {"model.blocks": counts})}


def _estimator(row: str, /, **options: object) -> dict[str, Variant]:
    changes = {f"log_det.{option}": value for option, value in options.items()}
    return {f"estimator {row}": Variant("estimator", changes)}


BASE = "base"

PAIRS = {"model.kernels": (3, 3), "model.activation": "sine-cosine"}

FALL = {"training.schedule": "cosine", "training.decay_steps": 0.6}

WITH_PAIRS: dict[str, dict[str, Any]] = {
    "blocks x 3/2": {"model.blocks": 1.5},
    "hidden 16": {"model.hidden": 16},
    "coeff 0.999": {"model.coeff": 0.999},
    "not in front": {"model.activate_input": False},
    "decay cosine": FALL,
    "noise variational": {"model.dequantization": "variational"},
    "noise variational, blocks x 3/2": {
        "model.dequantization": "variational",
        "model.blocks": 1.5,
    },
    "prior conditional": {"model.factor_out": True, "model.conditional_prior": True},
    "3-3-3": {"model.kernels": (3, 3, 3)},
}

BEST: dict[str, Any] = {**PAIRS, "model.dequantization": "variational"}

WITH_BEST: dict[str, dict[str, Any]] = {
    "best, rate 1e-2": {"training.learning_rate": 1e-2},
    "best, batch 32": {"training.batch_size": 32},
    "best, batch 32, rate 1e-2": {"training.batch_size": 32, "training.learning_rate": 1e-2},
    "best, batch 32, rate 2e-2": {"training.batch_size": 32, "training.learning_rate": 2e-2},
    "best, tol 1e-2": {"log_det.tol": 1e-2},
    "best, ema 0.99": {"training.ema_decay": 0.99},
    "best, hidden 16": {"model.hidden": 16},
    "best, coeff 0.995": {"model.coeff": 0.995},
    "best, noise by 2 blocks": {"model.dequantization_blocks": 2},
    "best, prior conditional": {"model.factor_out": True, "model.conditional_prior": True},
}

PRESET: dict[str, Any] = {
    **BEST,
    "model.slopes": (0.5, 4.0),
    "training.batch_size": 32,
    "training.learning_rate": 1e-2,
}

WITH_PRESET: dict[str, dict[str, Any]] = {
    "slopes 0.97, 0.97": {"model.slopes": None},
    "slopes 2.5, 0.97": {"model.slopes": (2.5, 0.974)},
    "slopes 0.97, 3": {"model.slopes": (0.974, 3.0)},
    "slopes 0.3, 4": {"model.slopes": (0.3, 4.0)},
    "slopes 0.5, 6": {"model.slopes": (0.5, 6.0)},
    "rate 5e-3": {"training.learning_rate": 5e-3},
    "rate 2e-2": {"training.learning_rate": 2e-2},
    "muon": {"training.optimizer": "muon"},
    "muon, rate 5e-3": {"training.optimizer": "muon", "training.learning_rate": 5e-3},
    "muon, rate 2e-2": {"training.optimizer": "muon", "training.learning_rate": 2e-2},
    "batch 16": {"training.batch_size": 16},
    "batch 64": {"training.batch_size": 64},
    "batch 8 to 32": {
        "training.batch_size": 8,
        "training.schedule": "batch",
        "training.drops": (0.3, 0.6),
        "training.drop": 0.5,
    },
    "batch 32 to 128": {
        "training.schedule": "batch",
        "training.drops": (0.5, 0.75),
        "training.drop": 0.5,
    },
    "noise uniform": {"model.dequantization": "uniform"},
    "noise normal": {"model.dequantization": "truncated-normal"},
    "noise by 2 blocks": {"model.dequantization_blocks": 2},
    "decorrelate": {"model.decorrelate": True},
    "not decorrelated": {"model.decorrelate": False},
    "hidden 16": {"model.hidden": 16},
    "hidden 64": {"model.hidden": 64},
    "coeff 0.9": {"model.coeff": 0.9},
    "coeff 0.95": {"model.coeff": 0.95},
    "coeff 0.999": {"model.coeff": 0.999},
    "ema 0": {"training.ema_decay": 0.0},
    "no clipping": {"training.clip_norm": None},
    "weight decay 1e-4": {"training.weight_decay": 1e-4},
    "decay linear 0.3": {"training.decay_steps": 0.3},
    "decay cosine": FALL,
    "prior fixed": {"model.learned_prior": False},
    "prior factor out": {"model.factor_out": True},
    "prior conditional": {"model.factor_out": True, "model.conditional_prior": True},
    "tol 1e-2": {"log_det.tol": 1e-2},
    "Krylov 2": {"log_det.name": "krylov", "log_det.terms": 2, "log_det.tol": 0.0},
    "Krylov 3": {"log_det.name": "krylov", "log_det.terms": 3, "log_det.tol": 0.0},
    "power series": {"log_det.name": "power-series"},
    "random series": {"log_det.name": "random-series"},
    "2 probes": {"log_det.probes": 2},
    "2 orthogonal probes": {"log_det.probes": 2, "log_det.probe": "orthogonal"},
    "3-3-3": {"model.kernels": (3, 3, 3)},
    "3-1-1-3": {"model.kernels": (3, 1, 1, 3)},
    "one layer": {"model.kernels": (3,)},
    "5-1": {"model.kernels": (5, 1)},
    "3-1-3": {"model.kernels": (3, 1, 3)},
    "concatenated": {"model.links": "concatenated"},
    "not in front": {"model.activate_input": False},
    "blocks x 3/2": {"model.blocks": 1.5},
    "lipswish": {"model.activation": "lipswish"},
    "clipswish": {"model.activation": "clipswish"},
    "elu": {"model.activation": "elu"},
    "sine": {"model.activation": "sine"},
}

KINDS: dict[str, dict[str, Any]] = {
    "chained": {},
    "monotone": {"model.block": "monotone"},
    "symmetric, sine": {"model.links": "symmetric", "model.activation": "sine"},
    "symmetric, sine, hidden 64": {
        "model.links": "symmetric",
        "model.activation": "sine",
        "model.hidden": 64,
    },
}

VARIANTS: dict[str, Variant] = {
    BASE: Variant(BASE, {}),
    **_one("rate", "training.learning_rate", 1e-3, 2e-3, 1e-2, 2e-2),
    "decay linear 0.3": _fall("linear", 0.3),
    "decay linear 0.6": _fall("linear", 0.6),
    "decay cosine 0.6": _fall("cosine", 0.6),
    "decay cosine whole": _fall("cosine", 0.99),
    **_one("batch", "training.batch_size", 16, 32, 64, 128, 256),
    **_one("ema", "training.ema_decay", 0.0, 0.99, 0.995, 0.9995),
    **_one("weight decay", "training.weight_decay", 1e-5, 1e-4, 1e-3),
    **_one("clip", "training.clip_norm", 0.1, 10.0, None),
    **_one("coeff", "model.coeff", 0.9, 0.95, 0.99, 0.999),
    **_kernels((3,), (3, 3), (3, 1), (5, 1), (3, 3, 3), (3, 1, 3), (3, 1, 1, 3)),
    **_one("hidden", "model.hidden", 16, 32, 64, 128),
    **_blocks("x 1/2", 0.5),
    **_blocks("x 3/2", 1.5),
    **_blocks("x 2", 2.0),
    **_blocks("fine", (6, 2)),
    **_blocks("coarse", (2, 6)),
    **_blocks("three scales", (3, 3, 2)),
    **_one("activation", "model.activation", "clipswish", "elu", "sine", "sine-cosine", "tanh"),
    **_one("in front", "model.activate_input", False),
    "block monotone": Variant("block", {"model.block": "monotone"}),
    **_one("normalization", "model.normalization", "certified", "power-iteration"),
    **_one("alpha", "model.alpha", 0.0, 1e-6, 0.01, 0.05),
    "noise variational": Variant("noise", {"model.dequantization": "variational"}),
    **{
        f"noise normal {deviation:g}": Variant(
            "noise",
            {
                "model.dequantization": "truncated-normal",
                "model.dequantization_deviation": deviation,
            },
        )
        for deviation in (0.2, 0.3, 0.5)
    },
    "prior fixed": Variant("prior", {"model.learned_prior": False}),
    "prior factor out": Variant("prior", {"model.factor_out": True}),
    "prior conditional": Variant(
        "prior", {"model.factor_out": True, "model.conditional_prior": True}
    ),
    **_estimator("tol 3e-3", tol=3e-3),
    **_estimator("tol 1e-2", tol=1e-2),
    **_estimator("2 probes", probes=2),
    **_estimator("gaussian", probe="gaussian"),
    **_estimator("2 orthogonal probes", probes=2, probe="orthogonal"),
    **_estimator("Krylov 2", name="krylov", terms=2, tol=0.0),
    **_estimator("Krylov 3", name="krylov", terms=3, tol=0.0),
    **_estimator("random series", name="random-series"),
    **{
        f"3-3, {name}": Variant("3-3", {"model.kernels": (3, 3), "model.activation": name})
        for name in ("clipswish", "elu", "sine", "sine-cosine")
    },
    **{f"pairs, {name}": Variant("pairs", {**PAIRS, **more}) for name, more in WITH_PAIRS.items()},
    **{name: Variant("with the best", {**BEST, **more}) for name, more in WITH_BEST.items()},
    "preset": Variant("preset", PRESET),
    **{
        f"preset, {name}": Variant("with the preset", {**PRESET, **more})
        for name, more in WITH_PRESET.items()
    },
    **{f"kind {name}": Variant("kind", {**PRESET, **more}) for name, more in KINDS.items()},
    "3-3, blocks x 3/2": Variant("together", {"model.kernels": (3, 3), "model.blocks": 1.5}),
    "3-3, blocks x 3/2, decay": Variant(
        "together",
        {
            "model.kernels": (3, 3),
            "model.blocks": 1.5,
            **FALL,
        },
    ),
    **{
        f"concatenated {'-'.join(map(str, kernels))}, {hidden}": Variant(
            "concatenated",
            {"model.links": "concatenated", "model.kernels": kernels, "model.hidden": hidden},
        )
        for kernels, hidden in (((3, 3), 32), ((3, 3, 1), 16), ((3, 3, 3), 16))
    },
}
"""All rows by name, the base first."""


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with other values of some options.

    Block counts are those of two scales of a base, or one factor of the base's own; a base that
    squeezes first (a count of 0) keeps doing so.

    Raises:
        ValueError: there is no such option, or no such value.
    """
    sections = {name: asdict(getattr(config, name)) for name in SECTIONS}
    for option, value in changes.items():
        section, _, name = option.partition(".")
        if name not in sections.get(section, {}):
            raise ValueError(f"there is no option {option}")
        if option == "model.blocks":
            value = _counts(config.model.blocks, value)
        sections[section][name] = value
    return Config(**{name: kind(**sections[name]) for name, kind in SECTIONS.items()})


def _counts(base: tuple[int, ...], value: tuple[int, ...] | float) -> tuple[int, ...]:
    """Blocks of each scale: other ones, or the base's times a factor."""
    if isinstance(value, float):
        return tuple(round(value * count) for count in base)
    return value if base[0] else (0, *value)
