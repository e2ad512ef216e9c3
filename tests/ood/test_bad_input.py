"""What scores refuse, and what they take that looks strange."""

import math

import numpy as np
import pytest
import torch
from helpers import small_image_flow, small_vector_flow

from iresflow import ImageFlow, VectorFlow
from iresflow.bijections import Composition
from iresflow.errors import NonFiniteError
from iresflow.models import Flow, UnitUniform
from iresflow.ood import (
    Complexity,
    DensityOfStates,
    LatentFit,
    LikelihoodRatio,
    LocalDimension,
    LogProb,
    Mutation,
    Panel,
    ScoreNorm,
    Scoring,
    Typicality,
    evaluate,
)

FOR_VECTORS = [LogProb, Typicality, ScoreNorm, LatentFit, LocalDimension, DensityOfStates]


def fitted_to_images():
    flow = small_image_flow(levels=17)
    return LogProb().fit(flow, torch.randint(0, 17, (10, 2, 4, 4)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 2, 8, 8, dtype=torch.uint8), "shape"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "shape"),
        (torch.full((3, 2, 4, 4), 255), "0 .. 16, got 255"),
        (torch.full((3, 2, 4, 4), -1), "0 .. 16, got -1"),
        (torch.rand(3, 2, 4, 4), "integers"),
        (torch.zeros(0, 2, 4, 4, dtype=torch.uint8), "no samples"),
        (torch.tensor(3), "no samples"),
    ],
)
def test_images_of_another_size_or_range(images, message):
    fitted = fitted_to_images()
    for use in (fitted.score, fitted.errors, lambda x: fitted.decide(x, 0.0)):
        with pytest.raises(ValueError, match=message):
            use(images)
    with pytest.raises(ValueError, match=message):
        LogProb().fit(fitted.flow, images)


@pytest.mark.parametrize("score", FOR_VECTORS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4), "shape"),
        (torch.zeros(0, 3), "no samples"),
        (torch.tensor([[0.0, torch.nan, 0.0]]), "NaN"),
        (torch.tensor([[0.0, torch.inf, 0.0]]), "infinity"),
    ],
)
def test_vectors_of_another_size_or_with_nan(score, x, message):
    flow = small_vector_flow()
    fitted = score().fit(flow, torch.randn(20, 3))
    with pytest.raises(ValueError, match=message):
        fitted.score(x)
    with pytest.raises(ValueError, match=message):
        score().fit(flow, x)


@pytest.mark.parametrize("score", FOR_VECTORS)
def test_what_lies_beyond_the_floats_reach_is_ranked_last(score):
    """In float32, squares overflow from 1e19 on and products soon after."""
    torch.set_default_dtype(torch.float32)
    flow, x = small_vector_flow(), torch.randn(40, 3)
    fitted = score().fit(flow, x)
    far = torch.tensor([[1e18] * 3, [1e25, 0, 0], [-3e38, 3e38, 3e38]])
    found = fitted.scores(far)
    assert not bool(found.values.isnan().any() | found.errors.isnan().any())
    if score is not LocalDimension:  # which is that of a limit
        assert bool((found.values > fitted.score(x).max()).all())
    # The others of the batch are what they are alone.
    torch.testing.assert_close(fitted.score(torch.cat([x, far]))[:40], fitted.score(x))


@pytest.mark.parametrize("score", FOR_VECTORS)
def test_what_lies_beyond_the_reach_of_float64_is_ranked_last(score):
    """There log p is minus infinity, and nothing wider is left to compute in."""
    flow, x = small_vector_flow(), torch.randn(40, 3)
    fitted = score().fit(flow, x)
    far = torch.tensor([[1e160] * 3, [1e200, 0, 0], [-1e300, 1e300, 1e250]])
    found = fitted.scores(far)
    assert bool((LogProb().fit(flow, x).score(far) == torch.inf).all())
    assert not bool(found.values.isnan().any() | found.errors.isnan().any())
    if score is not LocalDimension:  # which is that of a limit
        assert bool((found.values == torch.inf).all()) and bool((found.errors == 0).all())
        assert evaluate(fitted.score(x), found.values).auroc == 1


def test_where_the_density_is_0_a_score_is_infinite():
    flow = Flow(Composition(), UnitUniform(2), (2,)).eval()
    x = torch.tensor([[0.5, 0.5], [2.0, 0.5], [0.1, 0.9]])
    fitted = LogProb().fit(flow, x)
    assert fitted.score(x).tolist() == [0.0, torch.inf, 0.0]
    assert fitted.errors(x)[1] == 0
    assert ScoreNorm().fit(flow, x[[0, 2]]).score(x).tolist() == [0.0, torch.inf, 0.0]
    said = fitted.decide(x, 1e300)
    assert said.outlying.tolist() == [False, True, False] and not bool(said.undecided.any())
    assert evaluate(fitted.score(x[[0, 2]]), fitted.score(x[[1]])).auroc == 1
    with pytest.raises(ValueError, match="density is 0"):
        Typicality().fit(flow, x)
    with pytest.raises(ValueError, match="infinite"):
        DensityOfStates((LogProb(),)).fit(flow, x)
    states = DensityOfStates((ScoreNorm(), LogProb()))
    with pytest.raises(ValueError, match="no spread"):
        states.fit(flow, x[[0, 2]])
    with pytest.raises(ValueError, match="normal base"):
        LatentFit().fit(flow, x)


def test_an_infinite_statistic_gives_an_infinite_state():
    from iresflow.ood.scores import Scores
    from iresflow.ood.states import StateDensity

    density = StateDensity.fit([torch.randn(50), torch.randn(50)])
    values = [torch.tensor([0.0, torch.inf]), torch.zeros(2)]
    scores = [Scores.around(column, torch.full((2,), 0.1)) for column in values]
    found = density(small_vector_flow(), torch.zeros(2, 3), scores)
    assert bool(found.values[0].isfinite()) and found.values[1] == torch.inf
    assert found.errors[0] > 0 and found.errors[1] == 0


def test_a_state_whose_density_is_0_in_floats_is_ranked_last():
    flow, x = small_vector_flow(), torch.randn(40, 3)
    far = torch.tensor([[0.0, 0.0, 0.0], [1e100, 0.0, 0.0]])
    assert bool(LogProb().fit(flow, x).score(far).isfinite().all())  # their squares are not
    fitted = DensityOfStates((LogProb(), ScoreNorm())).fit(flow, x)
    found = fitted.scores(far)
    for column in (found.values, found.low, found.high):
        assert column.isinf().tolist() == [False, True]
    assert fitted.decide(far, 1e300).outlying.tolist() == [False, True]


def test_a_threshold_of_nan_is_refused():
    flow, x = small_vector_flow(), torch.randn(5, 3)
    with pytest.raises(ValueError, match="NaN"):
        LogProb().fit(flow, x).decide(x, math.nan)
    assert bool(LogProb().fit(flow, x).decide(x, math.inf).inside.all())


def test_what_is_no_flow_or_no_real_number_is_named():
    with pytest.raises(ValueError, match="got Linear"):
        LogProb().fit(torch.nn.Linear(3, 3), torch.randn(5, 3))
    with pytest.raises(ValueError, match="complex"):
        LogProb().fit(small_vector_flow(), torch.randn(5, 3) + 1j)


def test_a_damaged_flow_says_so():
    flow = small_vector_flow()
    fitted = LogProb().fit(flow, torch.randn(5, 3))
    flow.base.mean[:] = torch.nan
    with pytest.raises(NonFiniteError, match="damaged"):
        fitted.score(torch.randn(4, 3))
    with pytest.raises(NonFiniteError, match="damaged"):
        LatentFit().fit(flow, torch.randn(5, 3))


def test_scores_that_are_fitted_to_one_sample():
    flow, x = small_vector_flow(), torch.randn(6, 3)
    for score in (LogProb(), ScoreNorm(), LocalDimension(), Typicality()):
        assert bool(score.fit(flow, x[:1]).score(x).isfinite().all())
    assert float(Typicality().fit(flow, x[:1]).score(x[:1])) == pytest.approx(0)
    for score in (LatentFit(), DensityOfStates()):
        with pytest.raises(ValueError, match="two"):
            score.fit(flow, x[:1])
        with pytest.raises(ValueError, match="constant|no spread"):
            score.fit(flow, x[:1].expand(5, 3))


def test_what_has_no_code_or_is_in_training():
    flow = small_vector_flow()
    with pytest.raises(ValueError, match="no images"):
        Complexity().fit(flow, torch.randn(3, 3))
    deep = ImageFlow((1, 4, 4), (1,), 4, levels=1000)
    deep.initialize(deep.dequantize(torch.randint(0, 1000, (20, 1, 4, 4))))
    with pytest.raises(ValueError, match="1000 levels"):
        Complexity().fit(deep.eval(), torch.randint(0, 1000, (20, 1, 4, 4)))
    with pytest.raises(ValueError, match="eval"):
        LogProb().fit(flow.train(), torch.randn(3, 3))


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="draws"):
        ScoreNorm(Scoring(draws=2))
    with pytest.raises(ValueError, match="steps"):
        LocalDimension(steps=0)
    with pytest.raises(ValueError, match="steps"):
        LikelihoodRatio(steps=0)
    with pytest.raises(ValueError, match="rate"):
        Mutation(rate=0)
    with pytest.raises(ValueError, match="none"):
        DensityOfStates(())
    flow, other = small_vector_flow(), small_vector_flow(2)
    with pytest.raises(ValueError, match="background"):
        LikelihoodRatio(other).fit(flow, torch.randn(4, 3))


def test_contexts_are_class_numbers_or_numbers_and_fit():
    flow, x = small_vector_flow(context_dim=2), torch.randn(6, 3)
    classes = torch.tensor([0, 1, 0, 1, 1, 0])
    fitted = LogProb().fit(flow, x, classes)
    with torch.no_grad():
        exact = -flow.log_prob(x, torch.eye(2)[classes])
    torch.testing.assert_close(fitted.score(x, classes), exact)
    torch.testing.assert_close(fitted.score(x, torch.eye(2)[classes]), exact)
    for context in (None, torch.zeros(6, 3), torch.full((6, 2), torch.nan)):
        with pytest.raises(ValueError, match="contexts of shape"):
            fitted.score(x, context)
    with pytest.raises(ValueError, match="takes no context"):
        LogProb().fit(small_vector_flow(), x, classes)
    for score in (ScoreNorm(), LatentFit(), LocalDimension()):
        assert score.fit(flow, x, classes).score(x, classes).shape == (6,)


@pytest.mark.parametrize("factor_out", [False, True])
def test_scales_without_entries_have_no_statistics(factor_out):
    flow = small_image_flow(blocks=(0, 1, 1), factor_out=factor_out)
    images = torch.randint(0, 256, (12, 2, 4, 4))
    assert bool(LatentFit().fit(flow, images).score(images).isfinite().all())


def test_numpy_arrays_are_taken():
    flow, x = small_vector_flow(), np.random.default_rng(0).normal(size=(5, 3))
    found = LogProb().fit(flow, x).score(x)
    torch.testing.assert_close(found, -flow.log_prob(torch.from_numpy(x)).detach())


def test_what_makes_its_own_context():
    flow = ImageFlow((3, 4, 4), (1, 1), 4, given="grey")
    images = torch.randint(0, 256, (20, 3, 4, 4))
    flow.initialize(flow.dequantize(images), flow.given(images).to(torch.get_default_dtype()))
    flow.eval()
    for score in (LogProb(), LatentFit(), ScoreNorm(), Complexity()):
        assert score.fit(flow, images).score(images).shape == (20,)


def test_a_flow_of_no_parameters():
    flow = Flow(Composition(), UnitUniform(2), (2,)).eval()
    assert LocalDimension().fit(flow, torch.rand(4, 2)).score(torch.rand(3, 2)).shape == (3,)


def test_vectors_in_float32_and_a_float64_file():
    torch.set_default_dtype(torch.float32)
    flow = VectorFlow(2, blocks=1, hidden=4)
    flow.initialize(torch.randn(50, 2))
    fitted = LogProb().fit(flow.eval(), torch.randn(9, 2).double())
    assert fitted.score(torch.ones(2, 2)).dtype == torch.float64


def with_a_mask(values):
    """The same numbers in an array of NumPy, of which the first is masked."""
    masked = np.ma.masked_array(values.numpy(), mask=np.zeros(values.shape, dtype=bool))
    masked[(0,) * values.ndim] = np.ma.masked
    return masked


NO_ARRAYS = [
    ("words", "can't be made a tensor"),
    (None, "can't be made a tensor"),
    ([[0.0, 1.0, 2.0], [3.0]], "can't be made a tensor"),
    (np.array([[None, 1.0, 2.0]], dtype=object), "can't be made a tensor"),
    (with_a_mask(torch.zeros(4, 3)), "masks 1 of its 12"),
    (torch.eye(3).to_sparse(), "sparse"),
]


@pytest.mark.parametrize(("x", "message"), NO_ARRAYS)
def test_what_is_no_array_of_known_numbers(x, message):
    flow = small_vector_flow()
    fitted = LogProb().fit(flow, torch.randn(5, 3))
    for use in (fitted.score, lambda x: LogProb().fit(flow, x), lambda x: evaluate(x, [1.0])):
        with pytest.raises(ValueError, match=message):
            use(x)
    conditional = small_vector_flow(context_dim=3)
    asked = "contexts of shape" if x is None else f"context .*{message}"
    with pytest.raises(ValueError, match=asked):
        LogProb().fit(conditional, torch.randn(4, 3), x)


def test_images_some_of_whose_pixels_are_masked():
    fitted = fitted_to_images()
    images = torch.randint(0, 17, (3, 2, 4, 4))
    with pytest.raises(ValueError, match="masks 1 of its 96"):
        fitted.score(with_a_mask(images))
    nothing_masked = np.ma.masked_array(images.numpy(), mask=False)
    torch.testing.assert_close(fitted.score(nothing_masked), fitted.score(images))


def test_arrays_that_lie_backwards_or_are_read_only():
    flow, x = small_vector_flow(), np.random.default_rng(0).normal(size=(5, 3))
    fitted = LogProb().fit(flow, x)
    backwards = x[::-1]
    x.flags.writeable = False
    torch.testing.assert_close(fitted.score(backwards), fitted.score(x).flip(0))


def test_what_is_no_score_no_density_or_no_number():
    flow, x = small_vector_flow(), torch.randn(5, 3)
    for wrong in (["LogProb"], [LogProb], [None]):
        with pytest.raises(ValueError, match="scores such as"):
            Panel(flow, wrong, x)
        with pytest.raises(ValueError, match="scores such as"):
            DensityOfStates(wrong)
    assert DensityOfStates(LogProb()) == DensityOfStates([LogProb()])
    with pytest.raises(ValueError, match="estimator of scikit-learn with fit"):
        DensityOfStates((LogProb(),), density=object())
    fitted = LogProb().fit(flow, x)
    with pytest.raises(ValueError, match="a threshold is a number, got 'high'"):
        fitted.decide(x, "high")
    for number in (np.float32(1), torch.tensor(1.0), 1):
        assert fitted.decide(x, number).inside.shape == (5,)
    for settings in ({"draws": 2.5}, {"probes": 1}, {"draws": "many"}):
        with pytest.raises(ValueError, match="whole number"):
            Scoring(**settings)
    with pytest.raises(ValueError, match="real numbers"):
        evaluate(torch.ones(3, dtype=torch.complex64), [1.0])


def test_a_panel_of_no_scores_has_none():
    flow, x = small_vector_flow(), torch.randn(5, 3)
    assert Panel(flow, [], x).scores(x) == []
