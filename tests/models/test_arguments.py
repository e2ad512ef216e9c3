"""What constructors take: it is right, and can be saved and loaded, or it is refused at once."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import ClassVar

import numpy as np
import pytest
import torch

import iresflow
from iresflow import (
    CheckpointError,
    ImageFlow,
    InvertibleClassifier,
    PowerSeries,
    RandomSeries,
    VectorFlow,
)
from iresflow.bijections import dequantize, quantize
from iresflow.errors import StorageWarning
from iresflow.logdet import (
    Exact,
    LengthDistribution,
    LogDetEstimator,
    Poisson,
    estimator_from_dict,
    estimator_to_dict,
)
from iresflow.models import Flow
from iresflow.models.parts.arguments import ARGUMENTS
from iresflow.models.parts.plain import integer, integers, number, switch, word
from iresflow.models.storage import StoredModel

VECTORS = {
    "float64": lambda: VectorFlow(3, 2, 8, coeff=np.linspace(0.5, 0.9, 3)[-1]),
    "float32": lambda: VectorFlow(3, 2, 8, coeff=np.float32(0.9)),
    "tensor": lambda: VectorFlow(3, 2, 8, coeff=torch.tensor(0.9)),
    "array": lambda: VectorFlow(3, 2, 8, coeff=np.array(0.9)),
    "counts": lambda: VectorFlow(np.int32(3), np.int64(2), torch.tensor(8)),
    "widths": lambda: VectorFlow(3, 2, np.array([8, 6, 4])),
    "context": lambda: VectorFlow(3, 2, 8, context_dim=np.uint8(0)),
    "switch": lambda: VectorFlow(3, 2, 8, learned_prior=np.bool_(True)),
    "slopes": lambda: VectorFlow(3, 2, 8, slopes=np.float32([0.5, 4])),
    "names": lambda: VectorFlow(3, 2, 8, activation=np.array(["elu"])[0]),
    "series": lambda: VectorFlow(
        3, 2, 8, log_det=PowerSeries(np.int64(20), tol=np.float64(1e-3), probe=np.str_("gaussian"))
    ),
    "lengths": lambda: VectorFlow(
        3, 2, 8, log_det=RandomSeries(Poisson(np.float64(2.0)), np.int64(3))
    ),
}
IMAGES = {
    "alpha": lambda: ImageFlow((1, 4, 4), (1, 1), 4, alpha=np.float64(0.05)),
    "blocks": lambda: ImageFlow((1, 4, 4), np.array([1, 1]), 4),
    "shape": lambda: ImageFlow(tuple(np.array([1, 4, 4])), [1, 1], 4, levels=np.int64(16)),
    "size": lambda: ImageFlow(torch.zeros(2, 1, 4, 4).shape[1:], (1, 1), 4),
    "tensors": lambda: ImageFlow(torch.tensor([1, 4, 4]), torch.tensor([1, 1]), 4),
    "kernels": lambda: ImageFlow(
        (1, 4, 4), (1,), [4, np.int64(3)], kernels=np.array([3, 3, 1]), padding=np.str_("reflect")
    ),
    "slopes of images": lambda: ImageFlow(
        (1, 4, 4), (1, 1), 4, activation="sine-cosine", slopes=torch.tensor([0.5, 4])
    ),
    "switches": lambda: ImageFlow((1, 4, 4), (1, 1), 4, factor_out=np.bool_(False)),
}


def data(flow):
    return torch.rand(32, *flow.shape)


@pytest.mark.parametrize("make", {**VECTORS, **IMAGES}.values(), ids=[*VECTORS, *IMAGES])
def test_scalars_of_other_libraries_are_kept_as_plain_values(make, tmp_path):
    flow = make()
    assert json.loads(json.dumps(flow.spec)) == flow.spec
    flow.initialize(data(flow))
    flow.save(tmp_path / "flow.pt")
    loaded = iresflow.load(tmp_path / "flow.pt")
    assert loaded.spec == flow.spec
    flow.eval().enforce()
    x = data(flow)
    torch.testing.assert_close(loaded.transform(x), flow.transform(x))


def test_what_is_kept_is_what_was_given():
    flow = VectorFlow(3, 2, 8, coeff=np.float32(0.9))
    assert flow.spec["coeff"] == float(np.float32(0.9)) and type(flow.spec["coeff"]) is float
    assert type(ImageFlow((1, 4, 4), np.array([1, 1]), 4).spec["blocks"][0]) is int


@pytest.mark.parametrize("kind", [VectorFlow, ImageFlow, InvertibleClassifier])
def test_every_argument_is_one_that_models_keep(kind):
    assert set(signature(kind).parameters) - {"log_det"} <= set(ARGUMENTS)


REFUSED = {
    "blocks": (lambda: ImageFlow((1, 8, 8), blocks=3), "blocks must be a sequence"),
    "blocks, a string": (lambda: ImageFlow((1, 8, 8), "11"), "blocks must be a sequence"),
    "blocks, a float": (lambda: ImageFlow((1, 8, 8), (1.5, 1)), "each of blocks must be a whole"),
    "no blocks": (lambda: ImageFlow((1, 8, 8), ()), "blocks must hold one number for each"),
    "blocks below 0": (lambda: ImageFlow((1, 8, 8), (1, -1)), "each of blocks must be a whole"),
    "blocks of vectors": (lambda: VectorFlow(2, (1, 1)), "blocks must be a whole number"),
    "shape": (lambda: ImageFlow(28), "shape must be a sequence"),
    "shape of two": (lambda: ImageFlow((28, 28)), r"shape must be \(channels"),
    "levels": (lambda: ImageFlow((1, 8, 8), levels=2.5), "levels must be a whole number"),
    "one level": (lambda: ImageFlow((1, 8, 8), levels=1), "levels must be a whole number of 2"),
    "hidden": (lambda: VectorFlow(2, 2, 0), "hidden must be a whole number of 1"),
    "hidden, a float": (lambda: VectorFlow(2, 2, 8.0), "hidden must be a whole number"),
    "hidden, True": (lambda: VectorFlow(2, 2, True), "hidden must be a whole number"),
    "hidden, a string": (lambda: VectorFlow(2, 2, "88"), "hidden must be a sequence of whole"),
    "kernels": (lambda: ImageFlow((1, 8, 8), (1,), kernels=3), "kernels must be a sequence"),
    "padding": (lambda: ImageFlow((1, 8, 8), (1,), padding="same"), "unknown padding 'same'"),
    "dim": (lambda: VectorFlow("3"), "dim must be a whole number"),
    "context": (lambda: VectorFlow(2, 2, 8, context_dim=-1), "context_dim must be a whole"),
    "coeff": (lambda: VectorFlow(2, 2, 8, coeff="0.9"), "coeff must be a finite number"),
    "coeff, NaN": (lambda: VectorFlow(2, 2, 8, coeff=math.nan), "coeff must be a finite"),
    "alpha": (lambda: ImageFlow((1, 8, 8), alpha=None), "alpha must be a finite number"),
    "learned_prior": (lambda: VectorFlow(2, learned_prior=1), "learned_prior must be True or"),
    "factor_out": (lambda: ImageFlow((1, 8, 8), factor_out="no"), "factor_out must be True or"),
    "one slope": (lambda: VectorFlow(2, slopes=3), "slopes must be two numbers from"),
    "three slopes": (lambda: VectorFlow(2, slopes=(1, 2, 3)), "slopes must be two numbers"),
    "a slope of 0": (lambda: ImageFlow((1, 8, 8), slopes=(0, 1)), "slopes must be two numbers"),
    "a slope near 0": (lambda: VectorFlow(2, slopes=(1e-50, 1)), "slopes must be two numbers"),
    "slopes, NaN": (
        lambda: VectorFlow(2, slopes=(1, math.nan)),
        "each of slopes must be a finite",
    ),
    "slopes, a string": (lambda: VectorFlow(2, slopes="34"), "slopes must be two numbers"),
    "activation": (lambda: VectorFlow(2, activation=3), "activation must be a string"),
    "activation's name": (lambda: VectorFlow(2, activation="relu"), "unknown activation 'relu'"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_plain_values_by_kind():
    assert integer("n", np.int8(3), 0) == 3 and type(integer("n", torch.tensor(3), 0)) is int
    assert integers("n", range(1, 4), 1) == [1, 2, 3]
    assert number("x", 3) == 3.0 and type(number("x", np.float64(3))) is float
    assert switch("b", np.bool_(False)) is False and type(word("w", np.str_("a"))) is str
    for wrong in (math.inf, 1 + 2j, None, "1", True, np.array([1.0])):
        with pytest.raises(ValueError, match="x must be a finite number"):
            number("x", wrong)


# Grey levels.


@pytest.mark.parametrize("levels", [2, 10, 100, 255, 256, 1000, 65536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_of_no_integer_reaches_the_next(levels, dtype, monkeypatch):
    images = torch.arange(levels)
    for noise in (0.0, 1 - torch.finfo(dtype).eps / 2):
        monkeypatch.setattr(
            "iresflow.bijections.pixels.draw",
            lambda sampler, size, *_, u=noise, **__: torch.full(tuple(size), u, dtype=dtype),
        )
        x = dequantize(images, levels, dtype=dtype)
        assert 0 <= float(x.min()) and float(x.max()) < 1
        assert torch.equal(quantize(x, levels).long(), images)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32]
)
def test_integers_of_any_type_are_dequantised(dtype):
    flow = ImageFlow((1, 4, 4), (1,), 4, levels=100)
    images = torch.randint(0, 100, (32, 1, 4, 4))
    x = flow.dequantize(images.to(dtype), torch.Generator().manual_seed(0))
    assert torch.equal(x, flow.dequantize(images, torch.Generator().manual_seed(0)))
    flow.initialize(x)
    flow.eval().enforce()
    assert bool(flow.bits_per_dim(images.to(dtype)).values.isfinite().all())
    with pytest.raises(ValueError, match=r"integers 0 \.\. 99, got"):
        flow.dequantize(
            (images + 1).clamp(max=100).index_fill(0, torch.tensor([0]), 100).to(dtype)
        )


def test_sixteen_bits_are_the_most_that_float32_resolves():
    torch.set_default_dtype(torch.float32)
    flow = ImageFlow((1, 4, 4), (1,), 4, levels=65536)
    images = torch.randint(0, 65536, (512, 1, 4, 4)).to(torch.uint16)
    x = flow.dequantize(images)
    assert torch.equal(flow.quantize(x).long(), images.long())
    # The noise still has a few hundred values in the upper half, and the right mean.
    noise = x.double() * 65536 - images.long()
    assert abs(float(noise.mean()) - 0.5) < 4 * (1 / 12 / noise.numel()) ** 0.5 + 2**-8
    with pytest.raises(ValueError, match="levels must lie between 1 and 65536 with floats of"):
        ImageFlow((1, 4, 4), (1,), 4, levels=65537)
    torch.set_default_dtype(torch.float64)
    wide = ImageFlow((1, 4, 4), (1,), 4, levels=2**20)
    with pytest.raises(ValueError, match="between 1 and 65536 with floats of torch.float32"):
        wide.float().dequantize(torch.zeros(1, 1, 4, 4, dtype=torch.long))


# Estimators of one's own.


@dataclass(frozen=True)
class Halved(LogDetEstimator):
    """An estimator as the README invites people to write."""

    factor: float = 0.5
    kind: ClassVar[str] = "biased"

    def estimate(self, linearization, generator):
        return Exact().estimate(linearization, generator)


@dataclass(frozen=True)
class AlwaysThree(LengthDistribution):
    count: int = 3

    def survival(self):
        return torch.ones(self.count + 1)


@dataclass(frozen=True)
class WithFunction(LogDetEstimator):
    function: Callable = field(default=math.log)
    kind: ClassVar[str] = "biased"

    def estimate(self, linearization, generator):
        return Exact().estimate(linearization, generator)


class NoDataclass(LogDetEstimator):
    kind: ClassVar[str] = "biased"

    def estimate(self, linearization, generator):
        return Exact().estimate(linearization, generator)


@pytest.mark.parametrize("estimator", [Halved(0.25), RandomSeries(AlwaysThree(4))])
@pytest.mark.parametrize("kind", [VectorFlow, ImageFlow])
def test_models_with_estimators_of_ones_own_are_stored(estimator, kind, tmp_path):
    shape = 3 if kind is VectorFlow else (1, 4, 4)
    flow = kind(shape, 1 if kind is VectorFlow else (1,), 4, log_det=estimator)
    flow.initialize(data(flow))
    assert flow.log_prob(data(flow)).shape == (32,)
    flow.save(tmp_path / "flow.pt")
    assert iresflow.load(tmp_path / "flow.pt").log_det == estimator


def test_an_estimator_that_nobody_has_imported_is_named(tmp_path):
    settings = estimator_to_dict(Halved())
    assert settings == {"name": f"{__name__}.Halved", "factor": 0.5}
    with pytest.raises(ValueError, match="unknown estimator 'elsewhere.Halved'.*import"):
        estimator_from_dict({**settings, "name": "elsewhere.Halved"})


@pytest.mark.parametrize("estimator", [WithFunction(), NoDataclass()], ids=["function", "plain"])
def test_a_model_that_cannot_be_stored_says_so_at_construction(estimator, tmp_path):
    with pytest.warns(StorageWarning, match="this model can't be stored: .*(plain|no dataclass)"):
        flow = VectorFlow(3, 1, 4, log_det=estimator)
    flow.initialize(data(flow))
    x = data(flow)
    assert bool(flow.log_prob(x).isfinite().all())
    with pytest.raises(CheckpointError, match="can't be stored"):
        flow.save(tmp_path / "flow.pt")
    assert list(tmp_path.iterdir()) == []
    assert flow.eval().enforce()


# Classes of one's own.


def test_a_class_of_the_same_name_does_not_take_our_place(tmp_path):
    ours = ImageFlow((1, 4, 4), (1,), 4)
    ours.initialize(data(ours))
    ours.save(tmp_path / "ours.pt")

    def theirs():
        class ImageFlow(Flow):
            @classmethod
            def from_spec(cls, spec):
                raise AssertionError("this is not the class that was stored")

        return ImageFlow

    other = theirs()
    assert issubclass(other, Flow) and StoredModel.kinds["ImageFlow"] is ImageFlow
    assert other.kind() == f"{__name__}.{other.__qualname__}"
    assert type(iresflow.load(tmp_path / "ours.pt")) is ImageFlow


class Doubled(Flow):
    """A stored model of someone else."""

    def __init__(self, dim):
        inner = VectorFlow(dim, 1, 4)
        super().__init__(inner.bijection, inner.base, (dim,), data_map=inner.data_map)
        self.spec = {"dim": dim}

    @classmethod
    def from_spec(cls, spec):
        return cls(**spec)


def test_classes_from_elsewhere_are_stored_with_their_module(tmp_path):
    flow = Doubled(3)
    flow.initialize(torch.randn(20, 3))
    flow.save(tmp_path / "flow.pt")
    loaded = iresflow.load(tmp_path / "flow.pt")
    assert type(loaded) is Doubled
    payload = flow.eval().payload()
    assert payload["kind"] == f"{__name__}.Doubled"
    # As version 0.1.0 named it.
    older = iresflow.models.storage.model_from_payload({**payload, "kind": "Doubled"}, "cpu")
    assert type(older) is Doubled
    with pytest.raises(CheckpointError, match="no kind of model 'elsewhere.Doubled' is known"):
        iresflow.models.storage.model_from_payload({**payload, "kind": "elsewhere.Doubled"}, "cpu")
