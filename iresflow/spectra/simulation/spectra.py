"""Mass spectra of tissue spots with a truth that is known: peptides, instrument, random effects.

The model is that of imaging mass spectrometry by time of flight (thesis, sections 7.2 and 7.3): a
tissue microarray holds cores of patients, a core has spots, and each spot gives a spectrum of
counted ions. They are scattered as `iresflow.spectra.simulation.tissue` says, and arrive at the
masses of the averagine isotope pattern, with Gaussian peaks; a bin counts a Poisson number of
them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from iresflow.spectra.collection import Spectra
from iresflow.spectra.grids import tof_grid
from iresflow.spectra.parameters import require_kind, require_seed
from iresflow.spectra.simulation.instrument import Instrument, baseline_ions, peptide_ions
from iresflow.spectra.simulation.peptides import Peptide, classes_of
from iresflow.spectra.simulation.tissue import Layout, Variation, scattered_ions

__all__ = ["expected_ions", "simulate"]


def simulate(
    peptides: Sequence[Peptide],
    layout: Layout | None = None,
    instrument: Instrument | None = None,
    variation: Variation | None = None,
    *,
    seed: int = 0,
) -> Spectra:
    """Spectra with shot noise: a Poisson number of ions in each bin around `expected_ions`.

    Arguments and errors are those of `expected_ions`; the random effects of a seed are, too.

    Returns:
        Counts, float64, with all that is known of each spectrum.
    """
    expected = expected_ions(peptides, layout, instrument, variation, seed=seed)
    shots = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1])
    return replace(expected, X=shots.poisson(expected.X).astype(np.float64))


def expected_ions(
    peptides: Sequence[Peptide],
    layout: Layout | None = None,
    instrument: Instrument | None = None,
    variation: Variation | None = None,
    *,
    seed: int = 0,
) -> Spectra:
    """The ions that each bin would count in the mean over shots, given the random effects.

    Arguments:
        peptides: What the tissue holds (`draw_peptides`).
        layout: Numbers of arrays, patients, cores and spots; None for ``Layout()``.
        instrument: Grid, resolution and baseline; None for a time-of-flight grid of 1,800 to
            2,200 Da.
        variation: The random effects; None for ``Variation()``.
        seed: Of the random effects.

    Returns:
        Spectra with ``labels`` (the number of the class), ``cores``, ``patients`` and ``arrays``
        (numbers from 0) and ``coordinates`` (the same for spots of different arrays).

    Raises:
        ValueError: no peptide, peptides with different numbers of classes, fewer patients than
            classes, a seed that is no whole number of 0 or more, or an argument of another class.
    """
    layout = layout or Layout()
    instrument = instrument or Instrument(tof_grid(1800.0, 2200.0))
    variation = variation or Variation()
    require_kind(Layout, layout=layout)
    require_kind(Instrument, instrument=instrument)
    require_kind(Variation, variation=variation)
    require_seed(seed)
    levels = layout.levels(classes_of(peptides))
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
    ions, shares = scattered_ions(peptides, levels, variation, generator)
    shifts = variation.array_shift * generator.standard_normal(layout.arrays)[levels.array]
    shifts += variation.shift * generator.standard_normal(len(shifts))
    beside = np.exp(variation.baseline * generator.standard_normal((len(shifts), 1)))
    return Spectra(
        peptide_ions(instrument, peptides, ions, shares, 1 + 1e-6 * shifts)
        + beside * baseline_ions(instrument),
        instrument.grid,
        labels=levels.label,
        cores=levels.core,
        patients=levels.patient,
        arrays=levels.array,
        coordinates=layout.places(levels),
    )
