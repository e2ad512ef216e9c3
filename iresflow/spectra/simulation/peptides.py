"""What simulated spectra are of: peptides whose height or isotope structure tells the class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from iresflow.spectra.checks import Floats
from iresflow.spectra.parameters import (
    require_count,
    require_finite,
    require_kind,
    require_not_negative,
    require_positive,
    require_seed,
    require_share,
)
from iresflow.spectra.patterns import ISOTOPE_DISTANCE, isotope_pattern

__all__ = ["HEIGHTS", "ISOTOPES", "Effect", "Peptide", "draw_peptides", "form_pattern"]

# Daltons that a peptide gains where an asparagine turns into aspartic acid: an oxygen for an NH.
DEAMIDATION = 0.98402

# Mass of a peptide over its number of nucleons (Senko et al. 1995: 111.0543 / 111), and how far
# peptides scatter around it, in daltons.
MASS_PER_NUCLEON = 1.00049
MASS_SPREAD = 0.05


@final
@dataclass(frozen=True)
class Effect:
    """What a class does to a peptide.

    Arguments:
        log_height: Added to the natural logarithm of its ions: all its peaks grow alike.
        logit_share: Added to the logit of its share that is deamidated, a form that is 0.984 Da
            heavier: the ions stay, and move to later peaks of the isotope pattern.

    Raises:
        ValueError: one is no finite number.
    """

    log_height: float = 0.0
    logit_share: float = 0.0

    def __post_init__(self) -> None:
        require_finite(log_height=self.log_height, logit_share=self.logit_share)


# Strengths at which ROC/LDA is right on about 0.8 of the spots of the default simulation, as on
# the tissue of the thesis (figure 7.5: 0.79 and 0.84).
HEIGHTS = Effect(log_height=0.7)
ISOTOPES = Effect(logit_share=1.4)


@final
@dataclass(frozen=True)
class Peptide:
    """A peptide, seen as singly charged ions.

    Arguments:
        mass: m/z of its monoisotopic peak, in daltons.
        ions: Median number of its ions in a spectrum.
        share: How much of it is deamidated where no effect changes it, at least 0 and below 1.
        effects: One for each class.

    Raises:
        ValueError: a value is not in its range, or a class changes the share of a peptide that
            has no deamidated form.
    """

    mass: float
    ions: float
    share: float = 0.0
    effects: tuple[Effect, ...] = (Effect(), Effect())

    def __post_init__(self) -> None:
        require_positive(mass=self.mass, ions=self.ions)
        require_share(share=self.share)
        require_kind(tuple, effects=self.effects)
        require_kind(Effect, **{f"effects[{k}]": one for k, one in enumerate(self.effects)})
        if len(self.effects) < 2:
            raise ValueError(f"effects has {len(self.effects)} classes; at least 2 are needed")
        if self.share == 0 and any(effect.logit_share for effect in self.effects):
            raise ValueError("a class changes the deamidated share of a peptide that has none")

    @property
    def marks(self) -> bool:
        """Whether it differs between classes."""
        return any(effect != self.effects[0] for effect in self.effects)


def draw_peptides(
    low: float,
    high: float,
    effect: Effect = HEIGHTS,
    *,
    count: int = 60,
    marking: int = 6,
    classes: int = 2,
    ions: float = 60.0,
    spread: float = 1.0,
    share: float = 0.25,
    seed: int = 0,
) -> tuple[Peptide, ...]:
    """Peptides at random, of which each class has some that an effect marks.

    Arguments:
        low: Smallest monoisotopic mass, in daltons.
        high: Largest one; isotope patterns may reach beyond it.
        effect: What a class does to the peptides that mark it; other classes leave them alone.
        count: Number of peptides.
        marking: How many of them mark each class.
        classes: Number of classes.
        ions: Median of their ions a spectrum.
        spread: Standard deviation of the natural logarithm of these, between peptides.
        share: Of each that is deamidated.
        seed: Of the masses and the ions.

    Returns:
        In ascending order of mass.

    Raises:
        ValueError: an argument is out of its range, or there are too few peptides or masses.
    """
    require_positive(low=low, high=high, ions=ions)
    require_not_negative(spread=spread)
    require_share(share=share)
    require_count(count=count)
    require_count(0, marking=marking)
    require_count(2, classes=classes)
    require_kind(Effect, effect=effect)
    require_seed(seed)
    if count < marking * classes:
        raise ValueError(
            f"{count} peptides, of which {marking} mark each of {classes} classes: at least as "
            "many peptides as mark any are needed"
        )
    if not low < high:
        raise ValueError(f"masses ascend, got {low} to {high} Da")
    nucleons = np.arange(np.ceil(low / MASS_PER_NUCLEON), high / MASS_PER_NUCLEON)
    if len(nucleons) < count:
        raise ValueError(f"{count} peptides don't find masses of their own in {low} to {high} Da")
    generator = np.random.default_rng(seed)
    chosen = generator.choice(nucleons, count, replace=False)
    masses = chosen * MASS_PER_NUCLEON + MASS_SPREAD * generator.standard_normal(count)
    heights = ions * np.exp(spread * generator.standard_normal(count))
    none = (Effect(),) * classes
    found = []
    for place, (mass, height) in enumerate(zip(masses, heights, strict=True)):
        marked = place // marking if place < marking * classes else classes
        effects = (*none[:marked], effect, *none[marked + 1 :]) if marked < classes else none
        found.append(Peptide(float(mass), float(height), share, effects))
    return tuple(sorted(found, key=lambda peptide: peptide.mass))


def form_pattern(mass: float) -> tuple[Floats, Floats]:
    """Where the isotope peaks of one form of a peptide are, and the share of its ions in each.

    Arguments:
        mass: Of its monoisotopic peak, in daltons.

    Returns:
        Masses in daltons, and shares that sum to 1, both ``(peaks,)``.
    """
    heights = isotope_pattern(mass)
    return mass + ISOTOPE_DISTANCE * np.arange(len(heights)), heights / heights.sum()


def classes_of(peptides: Sequence[Peptide]) -> int:
    """The number of classes that all peptides agree on.

    Raises:
        ValueError: there is no peptide, something that is none, or they don't agree.
    """
    if not isinstance(peptides, Sequence):
        raise ValueError(f"peptides are a sequence of Peptide, got {peptides!r}")
    require_kind(Peptide, **{f"peptides[{k}]": one for k, one in enumerate(peptides)})
    found = {len(peptide.effects) for peptide in peptides}
    if len(found) != 1:
        raise ValueError(
            "there is no peptide"
            if not found
            else f"peptides have effects of {sorted(found)} classes; all need as many"
        )
    return found.pop()
