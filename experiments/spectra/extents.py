"""How many bins isotope patterns take, and how wide bins are, over the mass range (thesis, figures
7.3 and 7.4): on the simulator's grid, and on the grids of measured spectra."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.spectra.sets import DATA_SETS, load_set, spectra_root
from iresflow.commands.report import Report
from iresflow.spectra import BinFilters, isotope_pattern, pattern_bins, pattern_extent
from iresflow.spectra.checks import Floats
from iresflow.spectra.grids import bin_edges, tof_grid
from iresflow.spectra.networks.architecture import receptive_field
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA: dict[str, dict[str, object]] = {}


@dataclass(kw_only=True)
class Settings(Section):
    """Extents."""

    seed: int = 0
    """Nothing is random."""
    low: float = 500.0
    """Lower end of the simulator's grid, in daltons."""
    high: float = 5000.0
    """Its upper end."""
    width: float = 0.163
    """The mean width of its bins (thesis, section 7.3.2)."""
    resolution: float = 6000.0
    """Mass over the width of a peak at half its height."""
    masses: int = 400
    """Where patterns are looked at."""
    spectra: str | None = None
    """Directory of the measured spectra; null for $IRESFLOW_DATA/spectra, if it is there."""


def quick(settings: Settings) -> Settings:
    return replace(settings, masses=60)


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Draws both figures, and one table of all grids."""
    grid = tof_grid(settings.low, settings.high, settings.width)
    grids = {"simulator": grid}
    if spectra_root(settings.spectra).is_dir():
        for name in DATA_SETS:
            found = load_set(name, settings.spectra)
            shown = _SHOWN.get(name, name)
            if found.recorded is None:
                grids[shown] = found.spectra.grid
            else:
                grids[f"{shown}, as recorded"] = found.recorded
                grids[f"{shown}, as used"] = found.spectra.grid
    else:
        print(f"no directory {spectra_root(settings.spectra)}: the simulator's grid alone")
    masses, bins, peaks = _patterns(grid, settings)
    seen = receptive_field(BinFilters().convolutions(len(grid), None)[0])
    report.table("grids", [_row(name, found) for name, found in grids.items()], _CAPTION)
    report.numbers(
        "patterns",
        {
            "bins of the largest pattern": int(bins.max()),
            "at": f"{masses[bins.argmax()]:.0f} Da",
            "bins of the smallest": int(bins.min()),
            "bins that IsotopeNet sees": seen,
            "peaks of the first pattern and of the last": f"{peaks[0]}, {peaks[-1]}",
        },
        "On the simulator's grid.",
    )
    report.figure("patterns", _pattern_figure(masses, bins, seen), "Bins of patterns (figure 7.3)")
    report.figure("widths", _width_figure(grids), "Width of the bins (figure 7.4)")


_SHOWN = {"fiedler": "serum"}
"""What pages call a set, where that is not its name."""

_CAPTION = (
    "Grids: bins, their widths in daltons, and bins between two peaks of an isotope pattern, on "
    "average. Below two, isotopes can't be told apart."
)


def _patterns(grid: Floats, settings: Settings) -> tuple[Floats, Floats, Floats]:
    """Masses whose patterns lie on the grid, and the bins and the peaks of each."""
    found = []
    for mass in np.linspace(grid[0], grid[-1], settings.masses):
        width = mass / settings.resolution
        low, high = pattern_extent(mass, width)
        if grid[0] <= low and high <= grid[-1]:
            peaks = np.count_nonzero(isotope_pattern(mass))
            found.append((mass, pattern_bins(mass, grid, width), peaks))
    masses, bins, peaks = np.array(found).T
    return masses, bins, peaks.astype(int)


def _row(name: str, grid: Floats) -> dict[str, Any]:
    widths = np.diff(bin_edges(grid))
    mean = float((grid[-1] - grid[0]) / (len(grid) - 1))
    return {
        "grid": name,
        "bins": len(grid),
        "from": float(grid[0]),
        "to": float(grid[-1]),
        "narrowest": float(widths.min()),
        "mean width": mean,
        "widest": float(widths.max()),
        "bins between peaks": 1 / mean,
    }


def _pattern_figure(masses: Floats, bins: Floats, seen: int) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(masses, bins, color="tab:blue", label="isotope pattern of an average peptide")
    axes.axhline(43, color="tab:red", ls="--", lw=1, label="receptive field in the thesis, 43")
    axes.axhline(seen, color="tab:red", label=f"receptive field of IsotopeNet, {seen}")
    axes.set_ylim(0, None)
    axes.set_xlabel("mass of the first peak, daltons")
    axes.set_ylabel("bins")
    axes.legend(fontsize=9, loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def _width_figure(grids: Mapping[str, Floats]) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, grid) in enumerate(grids.items()):
        widths = np.diff(bin_edges(grid))
        axes.plot(grid, widths, color=f"C{place}", label=name)
        mean = (grid[-1] - grid[0]) / (len(grid) - 1)
        axes.plot(grid[[0, -1]], [mean, mean], color=f"C{place}", lw=0.8, ls=":")
    axes.axhline(0.5, color="0.4", ls="--", lw=1, label="two bins between isotopes")
    axes.set_yscale("log")
    axes.set_xlabel("mass, daltons")
    axes.set_ylabel("width of a bin, daltons")
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
    return figure
