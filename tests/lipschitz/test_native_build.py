"""Where the compiled passes lie, and what happens where something is wrong with them."""

import logging
import os
import resource
import tempfile
from pathlib import Path

import pytest
import torch
from interpreters import run_program

from iresflow.lipschitz import LipSwish, compile_kernels, conv_branch
from iresflow.lipschitz.passes.native import build, library
from iresflow.lipschitz.passes.native.norm import native_norm

USE = """
import logging, sys, torch
logging.basicConfig(level=logging.WARNING)
from iresflow.lipschitz import LipSwish, compile_kernels, conv_branch
from iresflow.lipschitz.passes.native.library import library
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
branch = conv_branch(2, 4, (4, 4), activation=LipSwish, coeff=0.9).eval()
x = torch.randn(3, 2, 4, 4)
expected = branch(x.requires_grad_())
compile_kernels()
with torch.no_grad():
    torch.testing.assert_close(branch(x), expected.detach())
print("native" if library() is not None else "torch")
"""


def use(cache, temporary=None, **variables):
    """A fresh process that computes with the passes: its exit code, what it said, and warnings."""
    variables |= {"XDG_CACHE_HOME": cache, "TMPDIR": temporary or cache}
    done = run_program(USE, environment=variables)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A cache with an object in it, that which this process uses."""
    if library.library() is None:
        pytest.skip("no compiler on this machine")
    own = Path(build.load()._name)
    path = tmp_path_factory.mktemp("cache") / "iresflow" / own.name
    path.parent.mkdir()
    path.write_bytes(own.read_bytes())
    assert use(path.parents[1]) == (0, "native", "")
    assert list(path.parent.iterdir()) == [path]
    return path


@pytest.fixture
def cache(sound, tmp_path):
    """A cache of its own for each test; the object in it."""
    path = tmp_path / "cache" / "iresflow" / sound.name
    path.parent.mkdir(parents=True)
    path.write_bytes(sound.read_bytes())
    return path


@pytest.fixture(scope="module")
def compiler(sound, tmp_path_factory):
    """A compiler of one program, which it has compiled before, and that takes no time."""
    path = tmp_path_factory.mktemp("compiler") / "c++"
    path.write_text(f"""#!/bin/sh
for last; do :; done
echo "$@" >> {path.parent}/calls
case "$last" in *.o) : > "$last";; *.so) cp {sound} "$last";; *) echo 1.0;; esac
""")
    path.chmod(0o700)
    return path


def flipped(content, place):
    content = bytearray(content)
    content[int(place * len(content))] ^= 1 << 4
    return bytes(content)


DAMAGES = {
    "empty": lambda content: b"",
    "cut to a page": lambda content: content[:4096],
    "cut at half": lambda content: content[: len(content) // 2],
    "the end is zeros": lambda content: content[:-8192] + bytes(8192),
    "a bit in the code": lambda content: flipped(content, 0.4),
    "a bit at the start": lambda content: flipped(content, 0.001),
    "text": lambda content: b"cut off",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_never_loaded(damage, cache, sound, monkeypatch):
    """The first four ended the process with SIGBUS or SIGSEGV, the others may compute nonsense."""
    cache.write_bytes(DAMAGES[damage](sound.read_bytes()))
    monkeypatch.setattr(build, "_built_in", lambda folder, name, compiler: folder / "new.so")
    monkeypatch.setattr(build, "_folders", lambda: [cache.parent])
    monkeypatch.setattr(build.ctypes, "CDLL", lambda path: path)
    assert build.load() == str(cache.parent / "new.so")
    assert not cache.exists()


def test_after_damage_a_process_builds_anew_and_computes(cache, sound, compiler):
    damaged = cache.with_name(f"{build._name([str(compiler)])}-{cache.stem.rpartition('-')[2]}.so")
    cache.unlink()
    damaged.write_bytes(DAMAGES["cut to a page"](sound.read_bytes()))
    assert use(cache.parents[1], CXX=compiler) == (0, "native", "")
    (path,) = cache.parent.glob("*.so")
    assert path.stat().st_size == sound.stat().st_size
    assert build._digest(path.read_bytes()) == path.stem.rpartition("-")[2]


def test_a_sound_object_is_loaded_as_it_is(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    monkeypatch.setattr(build, "_built_in", None)
    assert Path(build.load()._name) == cache


def test_a_cache_that_cannot_be_written_to_serves_what_it_has(cache, monkeypatch):
    """As on a file system that is mounted read-only."""
    monkeypatch.setattr(build, "_folders", lambda: [cache.parent])

    def read_only(*arguments, **options):
        raise PermissionError("read-only file system")

    for name in ("mkdir", "unlink", "write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, read_only)
    assert build.load()._name == str(cache)


def test_without_a_cache_the_object_lies_among_temporary_files(compiler, tmp_path):
    blocked, temporary = tmp_path / "file", tmp_path / "temporary"
    blocked.write_text("no folder can be made in a file")
    temporary.mkdir()
    for _ in range(2):
        assert use(blocked, temporary, CXX=compiler) == (0, "native", "")
    (folder,) = temporary.iterdir()
    (path,) = folder.iterdir()  # once, and nothing beside it
    assert path.suffix == ".so" and folder.stat().st_mode & 0o777 == 0o700


def test_nowhere_to_build_is_one_warning(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(build, "_folders", lambda: [blocked / "a", blocked / "b"])
    library.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="iresflow"):
            assert [library.library() for _ in range(3)] == [None] * 3
    finally:
        library.library.cache_clear()
    (record,) = caplog.records
    assert "PyTorch's run instead" in record.message


def test_an_object_that_others_may_have_put_there_is_not_run(cache, monkeypatch):
    cache.parent.chmod(0o777)
    assert build._sound(cache.parent, cache.stem.rpartition("-")[0]) is None
    cache.parent.chmod(0o700)
    assert build._sound(cache.parent, cache.stem.rpartition("-")[0]) == cache
    status = os.stat_result((0o40700, 0, 0, 0, os.getuid() + 1, *[0] * 5))
    monkeypatch.setattr(Path, "stat", lambda self: status)
    assert build._sound(cache.parent, cache.stem.rpartition("-")[0]) is None


def test_an_object_that_never_loads_is_built_once_only(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    builds, built = [], build._built_in
    monkeypatch.setattr(build, "_built_in", lambda *a: builds.append(1) or built(*a))

    def refused(name):
        raise OSError("undefined symbol")

    monkeypatch.setattr(build.ctypes, "CDLL", refused)
    for message in ("^undefined symbol", "to retry"):
        with pytest.raises(OSError, match=message):
            build.load()
    assert len(builds) == 1


def test_a_compiler_may_come_with_options_and_there_may_be_no_home(
    compiler, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CXX", f"{compiler} -m64")
    (compiler.parent / "calls").unlink(missing_ok=True)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(build.Path, "home", nobody)
    library.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="iresflow"):
            assert library.library() is not None
    finally:
        library.library.cache_clear()
    assert not caplog.records
    assert list(tmp_path.glob("iresflow-*/*.so"))
    calls = (compiler.parent / "calls").read_text().splitlines()
    assert len(calls) == 3 and all(call.startswith("-m64 ") for call in calls)


# Memory.

STARVED = """
import resource, torch
from iresflow.lipschitz import LipSwish, compile_kernels, conv_branch, dense_branch
from iresflow.lipschitz.passes.native.library import library
torch.set_num_threads({threads})
compile_kernels()
assert library() is not None
branch = conv_branch(4, 256, (48, 48), activation=LipSwish, coeff=0.9)
x = torch.randn(2, 4, 48, 48, requires_grad=True)
v = torch.randn(6, *x.shape)
small = torch.randn(2, 4, 48, 48)

def forward():
    with torch.no_grad():
        branch(x)

def backward():
    linearization = branch.linearize(x)
    (linearization.bilinear(v, v).sum() + linearization.value.sum()).backward()

torch.randn(1 << 20).sum()
# With norms as from a file: none is computed, which would take memory and leave it free.
state = dict([*branch.named_parameters(), *branch.named_buffers()])
branch.load_state_dict(state)
branch.eval() if {evaluates} else branch.train()
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
outcomes = set()
for room in range(1, 300, 30):
    limit = now + (room << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        {call}()
        outcomes.add("done")
    except MemoryError as error:
        assert "native pass" in str(error), error
        outcomes.add("native")
    except RuntimeError as error:  # of torch's allocator
        assert "memory" in str(error), error
        outcomes.add("torch")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
{call}()
print(*sorted(outcomes))
"""


@pytest.mark.parametrize(
    ("call", "evaluates", "threads"),
    [("forward", True, 1), ("backward", False, 1), ("backward", False, 2)],
)
def test_memory_that_runs_out_is_an_error_that_python_gets(sound, call, evaluates, threads):
    """The process was aborted before, with std::bad_alloc on its lips."""
    code = STARVED.format(call=call, evaluates=evaluates, threads=threads)
    done = run_program(code, environment={"XDG_CACHE_HOME": sound.parents[1]})
    assert done.returncode == 0, done.stderr
    assert "native" in done.stdout.split(), done.stdout


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.fixture
def compiled(sound):
    compile_kernels()
    if library.library() is None:
        pytest.skip("no compiler on this machine")
    yield
    compile_kernels(False)


@torch.no_grad()
def test_a_large_pass_leaves_no_large_buffers(compiled):
    branch = conv_branch(4, 192, (128, 128), activation=LipSwish, coeff=0.9).eval()
    x = torch.randn(1, 4, 128, 128)
    branch.bound()  # settles the norms
    before = resident()
    branch(x)
    # Its buffers take 3 * 192 * 128 * 128 * 8 bytes and more, 75 MB, which used to stay.
    assert resident() - before < 40 << 20


# Tensors that are not what they seem.


def negative(x):
    y = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert y.is_neg()
    return y


class Tagged(torch.Tensor):
    """A subclass with nothing of its own."""


VIEWS = {
    "negative": negative,
    "expanded": lambda x: x[:1].expand_as(x),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "overlapping": lambda x: x.flatten().as_strided(x.shape, (1, *[1] * (x.ndim - 1))),
    "offset": lambda x: torch.cat([x, x])[len(x) :],
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "recording": lambda x: x.clone().requires_grad_(),
    "a subclass": lambda x: x.as_subclass(Tagged),
    "a parameter": torch.nn.Parameter,
}


PLACES = [
    (view, place) for view in VIEWS for place in ("point", "directions", "weight", "context")
]
PLACES.remove(("zero", "point"))  # which PyTorch's own operations in place refuse


@pytest.mark.parametrize(("view", "place"), PLACES)
def test_views_are_the_numbers_that_they_stand_for(view, place, compiled):
    branch = conv_branch(2, 4, (5, 4), activation=LipSwish, coeff=0.9, context_dim=3).eval()
    x, v, context = torch.randn(3, 2, 5, 4), torch.randn(2, 3, 2, 5, 4), torch.randn(3, 3)

    def results(change):
        inputs = {"point": x, "directions": v, "context": context}
        if place in inputs:
            inputs[place] = change(inputs[place])
        weights = {name: p.detach() for name, p in branch.named_parameters()}
        if place == "weight":
            weights["layers.0.weight"] = change(weights["layers.0.weight"])
        with torch.no_grad():
            point, directions = inputs["point"], inputs["directions"]
            value = torch.func.functional_call(branch, weights, (point, inputs["context"]))
            products = branch.linearize(point, inputs["context"])
            return value, products.vjp(directions), products.jvp(directions)

    ours = results(VIEWS[view])
    compile_kernels(False)
    expected = results(lambda t: VIEWS[view](t).detach().as_subclass(torch.Tensor) + 0)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.as_subclass(torch.Tensor), b)


def test_the_norm_of_a_weight_that_is_to_be_negated(compiled):
    weight = torch.randn(4, 3)
    left = torch.randn(4)
    assert native_norm(weight, left) is not None
    others = [negative(weight), weight.to("meta"), weight.to_sparse(), weight.as_subclass(Tagged)]
    others.append(torch._efficientzerotensor((4, 3), dtype=weight.dtype))
    assert all(native_norm(other, left) is None for other in others)
    assert library.is_plain(weight[::2]) and library.is_plain(weight.expand(2, 4, 3))


def test_tensors_without_numbers_are_left_to_torch(compiled):
    branch = conv_branch(2, 4, (5, 4), activation=LipSwish, coeff=0.9).eval()
    with torch.no_grad():
        value = branch.to("meta")(torch.randn(3, 2, 5, 4, device="meta"))
    assert value.device.type == "meta" and value.shape == (3, 2, 5, 4)
