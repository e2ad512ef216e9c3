"""Cross-validation in which no group, and no core, is on both sides."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import BaseCrossValidator, StratifiedGroupKFold

from iresflow.spectra.checks import require_members

__all__ = ["group_folds"]

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


def group_folds(
    labels: ArrayLike,
    groups: ArrayLike,
    splitter: BaseCrossValidator | None = None,
    *,
    cores: ArrayLike | None = None,
) -> list[Fold]:
    """Places of the training and the test spectra of each fold, checked.

    Arguments:
        labels: Classes ``(spectra,)``.
        groups: What stays together ``(spectra,)``: the array or the patient of each spectrum.
        splitter: Of scikit-learn; None for ``StratifiedGroupKFold(4)``.
        cores: Of each spectrum, to make sure that none is on both sides; None for no such check.

    Returns:
        Pairs of integer arrays, for the ``cv`` of scikit-learn's functions.

    Raises:
        ValueError: no splitter, one class, one group, more folds than groups, arguments of
            different lengths, a core that belongs to several groups, or a fold without test
            spectra or whose training spectra lack a class.
    """
    label, group = require_members(labels=labels, groups=groups)
    classes, members = np.unique(label), np.unique(group)
    if len(classes) < 2:
        raise ValueError(f"there is one class, {classes[0]}" if len(classes) else "no spectrum")
    if len(members) < 2:
        raise ValueError(f"there is one group, {members[0]}: nothing can be left out")
    if cores is not None:
        _check_cores(require_members(len(label), cores=cores)[0], group)
    splitter = StratifiedGroupKFold(4) if splitter is None else splitter
    if not (hasattr(splitter, "split") and hasattr(splitter, "get_n_splits")):
        raise ValueError(f"splitter splits groups as GroupKFold does, got {splitter!r}")
    rows = np.zeros((len(label), 1))
    if (folds := splitter.get_n_splits(rows, label, group)) > len(members):
        raise ValueError(f"{folds} folds of {len(members)} groups: there are more folds")
    found: list[Fold] = list(splitter.split(rows, label, group))
    for place, (train, test) in enumerate(found):
        if set(group[train]) & set(group[test]):
            raise ValueError(
                f"{type(splitter).__name__} puts a group on both sides; a splitter of groups, "
                "such as GroupKFold, is needed"
            )
        missing = np.setdiff1d(classes, label[train])
        if not len(test) or len(missing):
            raise ValueError(
                f"fold {place} has no test spectrum: use fewer folds"
                if not len(test)
                else f"the training spectra of fold {place} have none of class {missing[0]}: all "
                "of its groups are left out together"
            )
    return found


def _check_cores(core: NDArray, group: NDArray) -> None:
    first: dict[object, object] = {}
    for one, its in zip(core.tolist(), group.tolist(), strict=True):
        if first.setdefault(one, its) != its:
            raise ValueError(
                f"core {one} belongs to the groups {first[one]} and {its}: cores need names of "
                "their own, or would be on both sides"
            )
