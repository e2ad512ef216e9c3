"""What the package computes is the same whatever switches its caller has set."""

import copy
import functools
import threading
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from helpers import followers, perturb, small_branch, switches

import iresflow
from iresflow import Accuracy, Exact, ImageFlow, Krylov, PowerSeries, VectorFlow, compile_kernels
from iresflow.ambient import full_precision, own_arithmetic, reduced_precision
from iresflow.bijections import ResidualBlock
from iresflow.errors import InversionWarning
from iresflow.lipschitz.passes.kernels import Kernel, kernels_compile
from iresflow.lipschitz.passes.plain import TorchPasses
from iresflow.switches import KEYS, NEWER, read, turn

pytestmark = pytest.mark.usefixtures("float32")


def vectors(**settings):
    settings = {"hidden": 8, "log_det": PowerSeries(6), **settings}
    flow = VectorFlow(4, blocks=2, context_dim=3, **settings)
    x, context = torch.randn(16, 4), torch.randn(16, 3)
    flow.initialize(x, context)
    return perturb(flow, 0.1), x, context


def images(context_dim=0, **settings):
    flow = ImageFlow((2, 4, 4), blocks=(1, 1), hidden=6, context_dim=context_dim, **settings)
    x, context = torch.rand(16, 2, 4, 4), torch.randn(16, context_dim) if context_dim else None
    flow.initialize(x, context)
    return perturb(flow, 0.1), x, context


FLOWS = {
    "vectors": vectors,
    "vectors, every option": functools.partial(
        vectors, prior="student", learned_prior=True, decorrelate=True
    ),
    "vectors, narrow branches": functools.partial(vectors, hidden=[3], log_det=Exact()),
    "images": images,
    "images, every option": functools.partial(
        images,
        context_dim=3,
        factor_out=True,
        conditional_prior=True,
        decorrelate=True,
        dequantization="variational",
    ),
}


def seeded():
    return torch.Generator().manual_seed(1)


CALLS = {
    "forward": lambda flow, x, c: flow(x, c)[1],
    "transform": lambda flow, x, c: flow.transform(x, c),
    "invert": lambda flow, x, c: flow.invert(flow.transform(x, c).detach(), c).value,
    "log_prob": lambda flow, x, c: flow.log_prob(x, c),
    "krylov": lambda flow, x, c: flow.log_prob(x, c, Krylov(tol=1e-5)),
    "as a distribution": lambda flow, x, c: flow.as_distribution(c).log_prob(x),
    "likelihood": lambda flow, x, c: flow.likelihood(x, c).truncation_bound,
    "sample": lambda flow, x, c: flow.sample(16, c, generator=seeded()),
    "sample_and_log_prob": lambda flow, x, c: flow.sample_and_log_prob(16, c, generator=seeded())[
        1
    ],
    "certify": lambda flow, x, c: number(flow.certify().largest),
    "enforce": lambda flow, x, c: number(copy.deepcopy(flow).enforce().largest),
    "initialize": lambda flow, x, c: initialized(flow, x, c),
    "base": lambda flow, x, c: flow.base.log_prob(x.flatten(1), c),
    "score": lambda flow, x, c: score(flow, x, c),
    "gradient": lambda flow, x, c: gradient(copy.deepcopy(flow), x, c),
    "training": lambda flow, x, c: gradient(copy.deepcopy(flow).train(), x, c),
    "transform's gradient": lambda flow, x, c: transform_gradient(copy.deepcopy(flow), x, c),
    "inverse's gradient": lambda flow, x, c: inverse_gradient(copy.deepcopy(flow), x, c),
}


def number(value):
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def initialized(flow, x, context):
    flow = copy.deepcopy(flow)
    flow.initialize(x if isinstance(flow, ImageFlow) else 3 * x, context)
    return flow.transform(x, context)


def score(flow, x, context):
    if not isinstance(flow, ImageFlow):
        return flow.likelihood(x, context, seed=1).log_prob
    return flow.bits_per_dim((255 * x).to(torch.uint8), context, seed=1).values


def gradients(flow):
    return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])


def gradient(flow, x, context):
    (-flow.log_prob(x, context, generator=seeded()).mean()).backward()
    return gradients(flow)


def transform_gradient(flow, x, context):
    flow.transform(x, context).square().mean().backward()
    return gradients(flow)


def inverse_gradient(flow, x, context):
    flow.inverse(x.flatten(1), context).square().mean().backward()
    return gradients(flow)


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AMBIENT = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "meta as the default device": lambda: default_device("meta"),
    "a region of another device": lambda: torch.device("meta"),
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "deterministic algorithms": deterministic,
}


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("kind", FLOWS)
def test_no_result_depends_on_ambient_switches(kind, ambient):
    flow, x, context = FLOWS[kind]()
    wrong = []
    for name, call in CALLS.items():
        expected = call(flow, x, context)
        with AMBIENT[ambient]():
            result = call(flow, x, context)
        if result.dtype != expected.dtype or not torch.equal(result, expected):
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", FLOWS)
def test_no_result_depends_on_the_recording_of_gradients(kind, mode):
    flow, x, context = FLOWS[kind]()
    for name, call in CALLS.items():
        if "gradient" in name or name == "training":
            continue
        expected = call(flow, x, context).detach()
        with mode():
            result = call(flow, x, context).clone()
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6, msg=name)
    assert gradient(flow.train(), x, context).isfinite().all()


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_block_alone_ignores_autocast(kind):
    block = ResidualBlock(small_branch(kind).float(), PowerSeries(6))
    x = torch.randn(8, *((5,) if kind == "dense" else (2, 5, 4)))

    def results():
        torch.manual_seed(3)
        z, log_det = block(x)
        return z, log_det, block.transform(x), block.invert(z.detach()).value

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, value in zip(results(), expected, strict=True):
            assert torch.equal(got, value)
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_narrow_inputs_are_widened_before_they_are_computed_with():
    flow, x, context = vectors()
    expected = flow.log_prob(x.bfloat16().float(), context.bfloat16().float())
    assert torch.equal(flow.log_prob(x.bfloat16(), context.bfloat16()), expected)
    flow, x, _ = images()
    assert torch.equal(flow.log_prob(x.half()), flow.log_prob(x.half().float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_models_are_refused_before_a_weight_moves(dtype):
    flow, x, context = vectors()
    before = copy.deepcopy(flow.state_dict())
    for module in (flow, flow.bijection, next(flow.blocks())[1], flow.base):
        with pytest.raises(ValueError, match="float32 or float64"):
            module.to(dtype)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert flow.double().log_prob(x.double(), context.double()).dtype == torch.float64


# Products of float32.

SETTINGS = {
    "default": {},
    "everything in tf32": {("generic", "all"): "tf32"},
    "everything in ieee": {("generic", "all"): "ieee"},
    "products of matrices in tf32": {("cuda", "matmul"): "tf32"},
    "convolutions in ieee": {("cuda", "conv"): "ieee"},
    "a backend in tf32, convolutions not": {("cuda", "all"): "tf32", ("cuda", "conv"): "ieee"},
    "a CPU's products in bfloat16": {("mkldnn", "matmul"): "bf16"},
    "convolutions in tf32": {("cuda", "conv"): "tf32"},
}
SETTINGS = {name: states for name, states in SETTINGS.items() if set(states) <= set(KEYS)}

newer = pytest.mark.skipif(not NEWER, reason="PyTorch before 2.9 has no switches that follow")


@pytest.fixture
def set_switches():
    """Sets switches by key; what they were is put back in the end."""
    before = dict(zip(KEYS, switches(), strict=True))
    explicit = set()

    def put(values):
        explicit.update(values)
        for key, value in values.items():
            turn(key, value)

    yield put
    for key in explicit:
        turn(key, "none")
    for key, value in before.items():
        if read(key) != value:
            turn(key, value)


@pytest.mark.parametrize("name", SETTINGS)
def test_whatever_its_switches_float32_means_all_digits_forwards_and_backwards(
    name, set_switches, monkeypatch
):
    flow, x, context = vectors()
    seen = {"forward": [], "backward": []}
    primal, adjoint = TorchPasses.primal, TorchPasses.adjoint

    def watched(pass_, place):
        def wrapper(*arguments):
            seen[place].append(switches())
            return pass_(*arguments)

        return wrapper

    monkeypatch.setattr(TorchPasses, "primal", watched(primal, "forward"))
    monkeypatch.setattr(TorchPasses, "adjoint", watched(adjoint, "backward"))
    set_switches(SETTINGS[name])
    before = switches()
    assert flow.sample(2, context[:2]).isfinite().all()
    flow.log_prob(x, context).sum().backward()
    assert switches() == before
    for place, states in seen.items():
        assert states and all(set(state) == {"ieee"} for state in states), place


@newer
def test_older_switches_still_work_around_a_flow(set_switches):
    flow, _, context = vectors()
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")
    try:
        flow.sample(2, context[:2])
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
        set_switches({("cuda", "matmul"): "none", ("mkldnn", "matmul"): "none"})
    assert torch.backends.cudnn.allow_tf32


@newer
def test_guards_leave_switches_following_those_that_they_followed():
    before = followers()
    with full_precision(), reduced_precision():
        pass
    assert followers() == before


@pytest.fixture
def kernel(monkeypatch):
    """A function that is compiled, but for code of its own."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compile_kernels()
    return Kernel(lambda x: x.sin() + 1)


@newer
@pytest.mark.parametrize("guard", [full_precision, reduced_precision, nullcontext])
@pytest.mark.parametrize(
    "setting",
    [{}, {("generic", "all"): "ieee"}, {("cuda", "all"): "tf32"}, {("cuda", "matmul"): "ieee"}],
)
def test_compiling_leaves_switches_following_those_that_they_followed(
    setting, guard, kernel, set_switches
):
    set_switches(setting)
    before, following = switches(), followers()
    with guard():
        kernel(torch.ones(3))
    assert kernels_compile()
    assert switches() == before and followers() == following


def test_a_switch_that_is_set_within_a_guard_is_put_back():
    before, following = switches(), followers() if NEWER else None
    for key in KEYS:
        for value in ("ieee", "tf32"):
            with full_precision():
                turn(key, value)
            assert switches() == before
    assert not NEWER or followers() == following


def test_the_switches_of_older_releases(monkeypatch, set_switches):
    keys = [("cuda", "matmul"), ("cuda", "conv")]
    monkeypatch.setattr("iresflow.switches.NEWER", False)
    before = {key: read(key) for key in keys}
    torch_says = {
        keys[0]: lambda: torch.get_float32_matmul_precision() != "highest",
        keys[1]: lambda: torch._C._get_cudnn_allow_tf32(),
    }
    for key in keys:
        for wish in ("ieee", "tf32", "none"):
            turn(key, wish)
            assert read(key) == (wish if wish != "none" else "tf32")
            assert torch_says[key]() == (read(key) == "tf32")
        turn(key, before[key])
    assert read(("mkldnn", "rnn")) == "none"
    monkeypatch.undo()
    set_switches({} if not NEWER else {key: "none" for key in (*keys, ("mkldnn", "matmul"))})


def test_nested_guards():
    before = switches()
    with reduced_precision():
        assert set(switches()) == {"tf32"}
        with own_arithmetic():
            assert set(switches()) == {"tf32"}
        with full_precision():
            assert set(switches()) == {"ieee"}
            with own_arithmetic():
                assert set(switches()) == {"ieee"}
        assert set(switches()) == {"tf32"}
    assert switches() == before


def test_a_guard_ends_with_an_error():
    before = switches()
    with pytest.raises(KeyError), torch.autocast("cpu"):
        with full_precision():
            raise KeyError
    assert switches() == before and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("first", "second"),
    [(full_precision, full_precision)] * 1
    + [(reduced_precision, full_precision), (full_precision, reduced_precision)],
)
def test_guards_of_two_threads_may_overlap(first, second):
    before, seen = switches(), []
    entered, leave = threading.Event(), threading.Event()

    def other():
        with second():
            entered.set()
            leave.wait(10)
            seen.append(switches())

    thread = threading.Thread(target=other)
    with first():
        thread.start()
        assert entered.wait(10)
        assert set(switches()) == {"ieee"}
    leave.set()
    thread.join()
    assert set(seen[0]) == {"tf32" if second is reduced_precision else "ieee"}
    assert switches() == before


def test_many_threads_leave_the_switches_as_they_were():
    before = switches()

    def work(guard):
        for _ in range(200):
            with guard(), own_arithmetic():
                pass

    guards = [full_precision, reduced_precision, own_arithmetic] * 3
    threads = [threading.Thread(target=work, args=(guard,)) for guard in guards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert switches() == before


def test_eight_threads_on_one_model_agree():
    flow, x, context = vectors()
    expected = [flow.log_prob(x, context), flow.invert(x, context).value]
    results = {}

    def work(number):
        results[number] = [flow.log_prob(x, context), flow.invert(x, context).value]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))
    for values in results.values():
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))


def test_warnings_name_the_callers_line():
    flow, x, context = vectors()
    for call in (
        lambda: flow.inverse(x, context, tol=1e-30),
        lambda: flow.invert(x, context, Accuracy(1e-30)),
        lambda: flow.bijection.inverse(x, context, tol=1e-30),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InversionWarning)
            call()
        assert caught and {warning.filename for warning in caught} == {__file__}


def test_models_load_whatever_the_default_device(tmp_path):
    flow, x, context = vectors()
    flow.save(tmp_path / "flow.pt")
    expected = iresflow.load(tmp_path / "flow.pt").log_prob(x, context)
    with default_device("meta"):
        loaded = iresflow.load(tmp_path / "flow.pt")
    assert torch.equal(loaded.log_prob(x, context), expected)
