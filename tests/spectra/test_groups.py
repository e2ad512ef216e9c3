"""Cross-validation with groups: nothing on both sides, and one clear error where it can't be."""

import numpy as np
import pytest
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    StratifiedGroupKFold,
)

from iresflow.spectra.groups import group_folds

LABELS = np.tile([0, 0, 1, 1], 12)
CORES = np.arange(48) // 2
ARRAYS = CORES // 4


@pytest.mark.parametrize(
    "splitter",
    [
        None,
        GroupKFold(3),
        StratifiedGroupKFold(4, shuffle=True, random_state=1),
        LeaveOneGroupOut(),
    ],
)
def test_no_array_and_no_core_is_on_both_sides_and_each_spectrum_is_tested_once(splitter):
    folds = group_folds(LABELS, ARRAYS, splitter, cores=CORES)
    for train, test in folds:
        assert not set(ARRAYS[train]) & set(ARRAYS[test])
        assert not set(CORES[train]) & set(CORES[test])
        assert len(train) + len(test) == 48
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(48))


def test_the_folds_are_those_of_scikit_learn():
    found = group_folds(LABELS, ARRAYS, GroupKFold(3))
    for mine, theirs in zip(found, GroupKFold(3).split(LABELS, LABELS, ARRAYS), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


@pytest.mark.parametrize("splitter", [GroupKFold(7), StratifiedGroupKFold(7)])
def test_more_folds_than_groups_are_refused(splitter):
    with pytest.raises(ValueError, match="7 folds of 6 groups"):
        group_folds(LABELS, ARRAYS, splitter)


# Newer scikit-learn says itself that this splitter knows no groups.
@pytest.mark.filterwarnings("ignore:The groups parameter is ignored")
def test_splits_that_can_t_be_or_would_leak_are_refused():
    one = np.zeros(48, int)
    with pytest.raises(ValueError, match="one class, 0"):
        group_folds(one, ARRAYS)
    with pytest.raises(ValueError, match="one group, 0"):
        group_folds(LABELS, one)
    with pytest.raises(ValueError, match="no spectrum"):
        group_folds([], [])
    with pytest.raises(ValueError, match=r"groups has the shape \(47,\)"):
        group_folds(LABELS, ARRAYS[1:])
    with pytest.raises(ValueError, match="one for each spectrum"):
        group_folds(LABELS[:, None], ARRAYS)
    # Of two groups without a name nobody can say whether they are one.
    nameless = np.where(ARRAYS == 3, np.nan, ARRAYS)
    for arguments in ((LABELS, nameless), (nameless, ARRAYS), (LABELS, ARRAYS, None, nameless)):
        with pytest.raises(ValueError, match="holds NaN"):
            group_folds(*arguments[:3], cores=arguments[3] if len(arguments) > 3 else None)
    for groups in (np.where(ARRAYS == 3, None, ARRAYS), np.where(ARRAYS == 3, "a", None)):
        with pytest.raises(ValueError, match="groups holds None or values of several kinds"):
            group_folds(LABELS, groups)
    with pytest.raises(ValueError, match="core 0 belongs to the groups 0 and 1"):
        group_folds(LABELS, ARRAYS, cores=CORES % 4)
    with pytest.raises(ValueError, match=r"cores has the shape \(47,\)"):
        group_folds(LABELS, ARRAYS, cores=CORES[1:])
    with pytest.raises(ValueError, match="KFold puts a group on both sides"):
        group_folds(LABELS, ARRAYS, KFold(5, shuffle=True, random_state=0))
    # All groups of a class left out together.
    with pytest.raises(ValueError, match="none of class 0"):
        group_folds(np.repeat([0, 1], 24), np.repeat([0, 1], 24), LeaveOneGroupOut())
