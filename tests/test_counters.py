"""Numbers from counters: known values, and the statistics of random numbers."""

import itertools
import math

import pytest
import torch
from scipy import stats

from iresflow.counters import GOLDEN, bits, digest, key_of_seed, mix, normal, uniform, words
from iresflow.streams import KeyedStream

SAMPLES, DRAWS, COUNT = 64, 8, 512


def unsigned(x):
    return [value % 2**64 for value in x.flatten().tolist()]


def test_words_are_those_of_splitmix64():
    """The first outputs of the published generator for seed 0, in its authors' C code."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert unsigned(words(torch.zeros(1, dtype=torch.int64), 4)) == expected


def splitmix(state):
    """The finaliser in Python's unbounded integers."""
    mask = 2**64 - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
    return state ^ (state >> 31)


def test_mixing_agrees_with_unbounded_integers():
    x = torch.randint(-(2**63), 2**63 - 1, (1000,))
    assert unsigned(mix(x)) == [splitmix(value) for value in unsigned(x)]


def mixed(seed):
    """Words ``(SAMPLES, DRAWS, COUNT)`` of neighbouring samples that differ in one bit."""
    stream = KeyedStream.of_samples(seed, torch.arange(SAMPLES)[:, None])
    return torch.stack([stream.words(COUNT) for _ in range(DRAWS)], 1)


def unmixed(seed):
    """The control: a counter in steps of the golden ratio, never mixed."""
    n = SAMPLES * DRAWS * COUNT
    return (torch.arange(seed * n, seed * n + n) * GOLDEN).reshape(SAMPLES, DRAWS, COUNT)


def floats(word):
    return uniform(lambda _: word.reshape(1, -1), word.numel(), torch.float64).reshape(word.shape)


def uniformity(make):
    """Two-sided p-values of chi-square for each of the eight bytes of the words."""
    table = make(0).flatten()
    p = []
    for shift in range(0, 64, 8):
        counts = torch.bincount((table >> shift) & 255, minlength=256).double()
        square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        p.append(2 * min(stats.chi2.cdf(square, 255), stats.chi2.sf(square, 255)))
    return p


def correlations(make):
    """Correlations, in standard errors, along and across entries, draws, samples and seeds."""
    u, other = floats(make(0)), floats(make(1))
    pairs = {
        "entries": (u[:, :, 1:], u[:, :, :-1]),
        "draws": (u[:, 1:], u[:, :-1]),
        "samples": (u[1:], u[:-1]),
        "samples two apart": (u[2:], u[:-2]),
        "seeds": (u, other),
        "draw and entry": (u[:, 1:, :-1], u[:, :-1, 1:]),
        "sample and entry": (u[1:, :, :-1], u[:-1, :, 1:]),
    }
    return {
        name: float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
        * a.numel() ** 0.5
        for name, (a, b) in pairs.items()
    }


def pairs_of_sums(make):
    """p-value of chi-square of 16 x 16 cells for pairs of neighbouring entries."""
    u = floats(make(0)).reshape(-1, 2)
    cells = (u * 16).long()
    counts = torch.bincount(cells[:, 0] * 16 + cells[:, 1], minlength=256).double()
    square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    return 2 * min(stats.chi2.cdf(square, 255), stats.chi2.sf(square, 255))


def test_words_are_uniform_and_the_control_is_not():
    assert min(uniformity(mixed)) > 1e-4
    assert min(uniformity(unmixed)) < 1e-12


def test_numbers_do_not_correlate_and_those_of_the_control_do():
    assert all(abs(c) < 4 for c in correlations(mixed).values()), correlations(mixed)
    assert sum(abs(c) > 10 for c in correlations(unmixed).values()) >= 3
    assert pairs_of_sums(mixed) > 1e-4 and pairs_of_sums(unmixed) < 1e-12


def test_all_bits_flip_with_every_bit_of_seed_and_content():
    """Half of the output's bits change with one of the input's (the avalanche criterion)."""
    contents = torch.randint(-(2**63), 2**63 - 1, (256, 1))
    before = KeyedStream.of_samples(5, contents).words(1)
    flipped = [KeyedStream.of_samples(5, contents ^ (1 << i)).words(1) for i in range(63)]
    flipped += [KeyedStream.of_samples(5 ^ (1 << i), contents).words(1) for i in range(63)]
    for after in flipped:
        changed = bits(lambda _, word=before ^ after: word, 64, torch.float64)
        assert abs(float(changed.mean()) - 0.5) < 4 * 0.5 / changed.numel() ** 0.5
        assert bool(((changed.mean(0) - 0.5).abs() < 5 * 0.5 / 256**0.5).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_uniform_floats_lie_below_one_and_are_a_prefix_of_the_finest(dtype):
    word = mixed(0)[0]
    fine = uniform(lambda _: word, COUNT, torch.float64)
    coarse = uniform(lambda _: word, COUNT, dtype)
    eps = torch.finfo(dtype).eps
    assert coarse.dtype == dtype and float(coarse.min()) >= 0 and float(coarse.max()) < 1
    assert bool(((fine - coarse.double()) >= 0).all())
    assert bool(((fine - coarse.double()) < eps / 2).all())
    ones = torch.full((1, 4), -1)
    assert float(uniform(lambda _: ones, 4, dtype).max()) == 1 - eps / 2


def test_distributions():
    """Kolmogorov-Smirnov against scipy, with a control that is off by 2 %."""
    keys = mix(torch.arange(1, 2001))
    u = uniform(lambda n: words(keys, n), 100, torch.float64).flatten()
    g = normal(lambda n: words(keys, n), 100, torch.float64).flatten()
    b = bits(lambda n: words(keys, n), 100, torch.float64).flatten()
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(g.numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(1.02 * g.numpy(), "norm").pvalue < 1e-4
    assert abs(float(b.mean()) - 0.5) < 4 * 0.5 / b.numel() ** 0.5
    single = normal(lambda n: words(keys, n), 100, torch.float32).flatten()
    torch.testing.assert_close(single.double(), g, rtol=1e-6, atol=1e-6)


def test_bits_of_a_draw_are_independent():
    keys = mix(torch.arange(1, 4001))
    signs = 2 * bits(lambda n: words(keys, n), 130, torch.float64) - 1
    covariance = signs.T @ signs / len(keys) - torch.eye(130)
    assert float(covariance.abs().max()) < 5.5 / len(keys) ** 0.5
    assert abs(float(covariance.square().mean()) * len(keys) - 1) < 0.05


# Content.


def test_equal_numbers_have_equal_digests():
    x = torch.randint(0, 200, (50, 3, 4))
    assert torch.equal(digest(x), digest(x.to(torch.uint8)))
    f = torch.randn(50, 3, 4)
    assert torch.equal(digest(f), digest(f.flip(0).flip(0)))
    zero = torch.zeros(1, 3)
    assert torch.equal(digest(zero), digest(-zero))
    # Not the sum of the samples of a batch, but each on its own.
    assert torch.equal(digest(f)[7:9], digest(f[7:9]))


def test_different_contents_have_different_digests():
    patterns = torch.tensor(list(itertools.product(range(4), repeat=5)))
    assert len(digest(patterns).unique()) == 4**5
    assert len(digest(patterns.double()).unique()) == 4**5
    x = torch.arange(6).reshape(1, 6)
    others = {
        "another order": digest(x.flip(1)),
        "in two parts": digest(x[:, :3], x[:, 3:]),
        "in the other order": digest(x[:, 3:], x[:, :3]),
        "with a zero": digest(torch.cat([x, torch.zeros_like(x[:, :1])], 1)),
        "the same": digest(x),
    }
    assert len({int(value) for value in others.values()}) == len(others)


def test_seeds_are_integers_of_any_size():
    keys = [int(key_of_seed(seed, torch.device("cpu"))) for seed in (-1, 0, 1, 2**63, 2**64 - 2)]
    assert len(set(keys)) == 5
    assert int(key_of_seed(2**64 + 3, torch.device("cpu"))) == int(
        key_of_seed(3, torch.device("cpu"))
    )
    assert math.isfinite(keys[0])
