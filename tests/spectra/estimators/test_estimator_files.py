"""Fitted estimators in files: all of them comes back, and what is no estimator is refused."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_spectra import QUICK, small_spectra

import iresflow
from iresflow.errors import CheckpointError
from iresflow.models.files import write_file
from iresflow.spectra import IsotopeNet, PhysicalFilters, ResidualNet, RocLda, load_estimator

pytestmark = pytest.mark.usefixtures("float32")


@pytest.mark.parametrize(
    "model",
    [
        IsotopeNet(validation=0.2, class_weight={"adeno": 2.0}, **QUICK | {"epochs": 2}),
        IsotopeNet(
            grid=small_spectra().grid,
            filters=PhysicalFilters(0.5, 1.0),
            **QUICK | {"epochs": 2},
        ),
        ResidualNet(**QUICK | {"epochs": 1}),
        RocLda(features=7, grid=small_spectra().grid, class_weight="balanced"),
    ],
    ids=["isotope", "physical", "residual", "roclda"],
)
def test_files_hold_all_of_an_estimator(model, small, tmp_path):
    fitted = clone(model).fit(small.X, small.y)
    fitted.save(tmp_path / "model.pt")
    before = torch.get_rng_state()
    for found in (type(model).load(tmp_path / "model.pt"), load_estimator(tmp_path / "model.pt")):
        assert np.array_equal(found.predict_proba(small.X), fitted.predict_proba(small.X))
        assert (found.predict(small.X) == fitted.predict(small.X)).all()
        assert repr(found) == repr(fitted)
        assert (found.classes_ == fitted.classes_).all()
        assert found.classes_.dtype == fitted.classes_.dtype
    clone(found).fit(small.X, small.y)
    after = torch.get_rng_state()
    assert torch.equal(before, after)
    other = RocLda if isinstance(model, IsotopeNet) else IsotopeNet
    with pytest.raises(CheckpointError, match=f"holds a {type(model).__name__}, not a"):
        other.load(tmp_path / "model.pt")


def test_damaged_and_other_files_are_refused(small, tmp_path):
    file = tmp_path / "model.pt"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_estimator(file)
    with pytest.raises(ValueError, match="this RocLda is not fitted yet"):
        RocLda().save(file)
    model = RocLda(features=3).fit(small.X, small.y)
    model.save(file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="was cut off"):
        load_estimator(file)
    write_file({"other": {}}, file)
    with pytest.raises(CheckpointError, match="holds no estimator of iresflow.spectra"):
        load_estimator(file)
    write_file({"estimator": {"kind": "RocLda", "parameters": {"k": 3}, "fitted": {}}}, file)
    with pytest.raises(CheckpointError, match="can't be rebuilt: .*unexpected keyword"):
        load_estimator(file)
    seeded = IsotopeNet(random_state=np.random.RandomState(0), epochs=1).fit(small.X, small.y)
    with pytest.raises(ValueError, match="random_state is a RandomState, which can't be stored"):
        seeded.save(file)


def test_who_reads_the_wrong_kind_of_file_is_told_what_reads_it(small, tmp_path):
    RocLda(features=3).fit(small.X, small.y).save(tmp_path / "estimator.pt")
    with pytest.raises(CheckpointError, match=r"which iresflow\.spectra\.load_estimator reads"):
        iresflow.load(tmp_path / "estimator.pt")
    flow = iresflow.VectorFlow(2, 1, 4)
    flow.initialize(torch.randn(8, 2))
    flow.eval().save(tmp_path / "flow.pt")
    with pytest.raises(CheckpointError, match=r"holds a model, which iresflow\.load reads"):
        load_estimator(tmp_path / "flow.pt")
