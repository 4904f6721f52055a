"""Philox draws: published vectors, committed bits, the same bits from Triton and eager torch."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastadv.kernels.noise import streams
from fastadv.ops import backend
from fastadv.ops.noise import cpu as cpu_philox
from fastadv.ops.noise import philox
from fastadv.ops.noise import reference as eager_philox

if backend.triton_is_installed():
    import triton
    import triton.language as tl

    from fastadv.kernels.noise import philox as device_philox

    @triton.jit
    def _known_answer_kernel(out_ptr, counters_ptr, keys_ptr):
        c0 = tl.load(counters_ptr).to(tl.uint32)
        c1 = tl.load(counters_ptr + 1).to(tl.uint32)
        c2 = tl.load(counters_ptr + 2).to(tl.uint32)
        c3 = tl.load(counters_ptr + 3).to(tl.uint32)
        k0 = tl.load(keys_ptr).to(tl.uint32)
        k1 = tl.load(keys_ptr + 1).to(tl.uint32)
        w0, w1, w2, w3 = tl.philox_impl(c0, c1, c2, c3, k0, k1, 10)
        tl.store(out_ptr, w0.to(tl.int64))
        tl.store(out_ptr + 1, w1.to(tl.int64))
        tl.store(out_ptr + 2, w2.to(tl.int64))
        tl.store(out_ptr + 3, w3.to(tl.int64))

    @triton.jit
    def _draw_kernel(
        out_ptr,
        sample_ids_ptr,
        draws_ptr,
        seed: "i64",  # noqa: F821
        count,
        PURPOSE: tl.constexpr,
        KIND: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0)
        sample_id = tl.load(sample_ids_ptr + row)
        draw = tl.load(draws_ptr + row)
        call = tl.arange(0, BLOCK // 4)
        if KIND == "words":
            w0, w1, w2, w3 = device_philox.draw_words(seed, sample_id, draw, call, PURPOSE)
            value = device_philox.in_order(w0, w1, w2, w3)
        elif KIND == "uniforms":
            value = device_philox.uniforms(seed, sample_id, draw, call, PURPOSE)
        elif KIND == "exponentials":
            value = device_philox.exponentials(seed, sample_id, draw, call, PURPOSE)
        elif KIND == "signed_exponentials":
            value = device_philox.signed_exponentials(seed, sample_id, draw, call, PURPOSE)
        elif KIND == "signs":
            w0, w1, w2, w3 = device_philox.draw_words(seed, sample_id, draw, call, PURPOSE)
            value = device_philox.sign(device_philox.in_order(w0, w1, w2, w3))
        else:
            value = device_philox.normals(seed, sample_id, draw, call, PURPOSE)
        e = tl.arange(0, BLOCK)
        tl.store(out_ptr + row * count + e, value.to(out_ptr.dtype.element_ty), mask=e < count)


needs_triton = pytest.mark.skipif(
    not backend.triton_is_installed(), reason="needs triton, which is installed on Linux only"
)
KINDS = ("words", "uniforms", "signs", "exponentials", "signed_exponentials", "normals")
IDS = (0, 1, -7, 2**31 + 5, 2**40 + 3, -(2**63), 2**63 - 1)

# Random123's kat_vectors: counter, key, words
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def _eager(kind, seed, ids, draws, count, purpose=streams.USER):
    return getattr(philox, kind)(seed, ids, purpose, draws, count)


def _triton(kind, seed, ids, draws, count, purpose=streams.USER):
    dtype = torch.int64 if kind == "words" else torch.float32
    out = torch.full((len(ids), count), -7, dtype=dtype, device=ids.device)
    block = max(16, triton.next_power_of_2(count))
    _draw_kernel[(len(ids),)](
        out,
        ids,
        draws,
        philox.signed_seed(seed),
        count,
        PURPOSE=purpose,
        KIND=kind,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


def _keys(device):
    ids = torch.tensor(IDS, device=device)
    draws = torch.tensor([0, 1, 2**24 - 1, 5, 0, 7, 2], dtype=torch.int32, device=device)
    return ids, draws


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_known_answers_in_eager_torch(counter, key, expected, device):
    c = [torch.tensor([word], device=device) for word in counter]
    words = eager_philox.philox4x32(*c, key[1] << 32 | key[0])
    assert [int(word) for word in words] == expected


@needs_triton
@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_known_answers_in_triton(counter, key, expected, device):
    out = torch.zeros(4, dtype=torch.int64, device=device)
    counters, keys = (torch.tensor(words, device=device) for words in (counter, key))
    _known_answer_kernel[(1,)](out, counters, keys)
    assert out.tolist() == expected


def test_the_counter_layout_is_the_contract(device):
    """counter = (element >> 2, purpose << 24 | draw, id low, id high), key = seed, lane = e & 3."""
    seed, sample_id, purpose, draw = 0xA4093822_299F31D0, -0x0FEDCBA9_87654321, 0xC3, 0x456789
    low, high = sample_id & 0xFFFFFFFF, sample_id >> 32 & 0xFFFFFFFF
    drawn = philox.words(seed, torch.tensor([sample_id], device=device), purpose, draw, 4 * 7)[
        0
    ].view(7, 4)
    for call in range(7):
        counter = (torch.tensor(v, device=device) for v in (call, 0xC3456789, low, high))
        assert drawn[call].tolist() == [
            int(word) for word in eager_philox.philox4x32(*counter, seed)
        ]


# The layout is for ever: these bits were committed with the first version and never change.
GOLDEN_SEED, GOLDEN_IDS, GOLDEN_DRAW = -12345, [3, -7, 2**40 + 3], 9
GOLDEN_WORDS = [
    [3509160054, 3862717913, 2789044950, 3835548341, 608550557, 791085845],
    [4191953804, 1918290499, 405711373, 3509589075, 1639827646, 3704186083],
    [340360133, 1429494885, 1193841781, 3350722921, 3691355292, 1451903067],
]
GOLDEN_NORMALS = [
    [
        "0x1.7c995a0000000p+0",
        "-0x1.16dec00000000p+0",
        "0x1.22070e0000000p+0",
        "-0x1.cd87b00000000p-1",
        "0x1.c6e7ec0000000p-3",
        "0x1.032cd00000000p-1",
    ],
    [
        "-0x1.4a27460000000p+1",
        "0x1.cc2a0e0000000p-1",
        "0x1.758f3a0000000p-3",
        "-0x1.a02dfc0000000p-2",
        "0x1.45fed40000000p-1",
        "-0x1.7df1c20000000p-1",
    ],
    [
        "-0x1.9dd3fe0000000p-3",
        "0x1.69043e0000000p-2",
        "0x1.3741e60000000p-3",
        "-0x1.95d35a0000000p-1",
        "-0x1.0a783a0000000p+0",
        "0x1.af7ffe0000000p+0",
    ],
]
GOLDEN_EXPONENTIALS = [
    [
        "0x1.b2d0140000000p+0",
        "-0x1.25e9c00000000p+1",
        "0x1.0c4c3c0000000p+0",
        "-0x1.1e1c380000000p+1",
        "-0x1.38e96e0000000p-3",
        "-0x1.a0eaac0000000p-3",
    ],
    [
        "0x1.dd7bb60000000p+1",
        "-0x1.2ef8a40000000p-1",
        "-0x1.966e160000000p-4",
        "-0x1.b2f3e00000000p+0",
        "0x1.ec7d440000000p-2",
        "-0x1.fbd73e0000000p+0",
    ],
    [
        "-0x1.522d300000000p-4",
        "-0x1.9e6c7a0000000p-2",
        "-0x1.4d7ebe0000000p-2",
        "-0x1.83cadc0000000p+0",
        "0x1.f657280000000p+0",
        "-0x1.a676840000000p-2",
    ],
]
GOLDEN_INTEGERS = [684, 531, 978]


def _golden(kind, device):
    ids = torch.tensor(GOLDEN_IDS, device=device)
    return _eager(kind, GOLDEN_SEED, ids, GOLDEN_DRAW, 6, streams.START_NORMAL)


def test_golden_words(device):
    assert _golden("words", device).tolist() == GOLDEN_WORDS


def test_golden_normals(device):
    assert [[v.hex() for v in row] for row in _golden("normals", device).tolist()] == GOLDEN_NORMALS


def test_golden_exponentials(device):
    drawn = _golden("signed_exponentials", device).tolist()
    assert [[v.hex() for v in row] for row in drawn] == GOLDEN_EXPONENTIALS


def test_golden_integers(device):
    ids = torch.tensor(GOLDEN_IDS, device=device)
    drawn = philox.random_integers(GOLDEN_SEED, ids, streams.TARGET, GOLDEN_DRAW, 1000)
    assert drawn.tolist() == GOLDEN_INTEGERS


def test_purposes_keep_their_numbers():
    numbers = {n: v for n, v in vars(streams).items() if n.isupper() and n != "DRAW_BITS"}
    assert len(set(numbers.values())) == len(numbers)
    assert all(0 <= v < 256 for v in numbers.values())
    assert numbers == {
        "START_UNIFORM": 0,
        "START_NORMAL": 1,
        "START_EXPONENTIAL": 2,
        "START_RADIUS": 3,
        "START_SIGN": 4,
        "TARGET": 16,
        "EOT": 17,
        "INPUT_DIVERSITY": 18,
        "INPUT_NOISE": 19,
        "DROPOUT": 20,
        "SAMPLE_CHOICE": 21,
        "SQUARE_INIT": 32,
        "SQUARE_POSITION": 33,
        "SQUARE_SIGN": 34,
        "SQUARE_CHOICE": 35,
        "QUERY_DIRECTION": 36,
        "DATA_ORDER": 64,
        "AUGMENT_CROP": 65,
        "AUGMENT_FLIP": 66,
        "AUGMENT_ERASE": 67,
        "AUGMENT_COLOUR": 68,
        "AUGMENT_MIX": 69,
        "USER": 192,
    }


@needs_triton
@pytest.mark.parametrize("seed", [0, -1, 2**32 + 17, -(2**63), 2**64 - 2])
@pytest.mark.parametrize("kind", KINDS)
def test_triton_draws_the_same_bits(kind, seed, device):
    ids, draws = _keys(device)
    drawn = _triton(kind, seed, ids, draws, 1023)
    assert torch.equal(drawn, _eager(kind, seed, ids, draws, 1023))


@needs_triton
@pytest.mark.parametrize("count", [1, 15, 3072])
@pytest.mark.parametrize("kind", KINDS)
def test_triton_draws_the_same_bits_of_any_count(kind, count, device):
    ids, draws = _keys(device)
    assert torch.equal(_triton(kind, 5, ids, draws, count), _eager(kind, 5, ids, draws, count))


@needs_triton
def test_triton_draws_the_same_normals_a_million_times(device):
    ids = torch.arange(16, device=device)
    draws = torch.zeros(16, dtype=torch.int32, device=device)
    drawn = _triton("normals", 1, ids, draws, 1 << 16)
    assert torch.equal(drawn, _eager("normals", 1, ids, draws, 1 << 16))


def test_a_shorter_draw_is_the_beginning_of_a_longer_one(device):
    ids, draws = _keys(device)
    for kind in KINDS:
        longer = _eager(kind, 3, ids, draws, 1000)
        for count in (1, 2, 3, 4, 999):
            assert torch.equal(_eager(kind, 3, ids, draws, count), longer[:, :count])


def test_a_sample_draws_the_same_in_any_batch(device):
    ids, draws = _keys(device)
    order = torch.tensor([4, 0, 6, 2], device=device)
    for kind in KINDS:
        together = _eager(kind, 3, ids, draws, 77)
        assert torch.equal(_eager(kind, 3, ids[order], draws[order], 77), together[order])
        assert torch.equal(_eager(kind, 3, ids[4:5], draws[4:5], 77), together[4:5])
        assert torch.equal(_eager(kind, 3, ids[4:5], int(draws[4]), 77), together[4:5])


def test_every_part_of_the_key_counts(device):
    def draw(seed=1, sample_id=1, purpose=1, draw=1):
        ids = torch.tensor([sample_id], device=device)
        return philox.words(seed, ids, purpose, draw, 64)

    variants = [
        draw(), draw(seed=2), draw(seed=-1), draw(seed=1 + 2**32), draw(sample_id=2),
        draw(sample_id=-1), draw(sample_id=1 + 2**32), draw(purpose=2), draw(purpose=255),
        draw(draw=2), draw(draw=2**24 - 1),
    ]  # fmt: skip
    for i, one in enumerate(variants):
        for other in variants[:i]:
            assert (one == other).sum() == 0  # 64 words: a chance of 1e-8


def test_seeds_count_modulo_2_64(device):
    ids = torch.arange(3, device=device)
    for one, other in ((-1, 2**64 - 1), (5, 5 + 2**64), (2**63, -(2**63))):
        assert torch.equal(philox.words(one, ids, 0, 0, 8), philox.words(other, ids, 0, 0, 8))
        assert philox.signed_seed(one) == philox.signed_seed(other)


def _many(kind, seed=11):
    return _eager(kind, seed, torch.arange(64), 0, 4096).double().flatten().numpy()


def test_words_use_every_bit():
    words = philox.words(2, torch.arange(64), 0, 0, 4096).flatten()
    ones = torch.stack([(words >> bit & 1).sum() for bit in range(32)]).double()
    deviation = (ones - len(words) / 2) / math.sqrt(len(words) / 4)
    assert deviation.abs().max() < 4.5  # 32 bits: one in 5,000


def test_uniforms_are_uniform_and_below_one():
    u = _many("uniforms")
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.kstest(u**1.02, "uniform").pvalue < 1e-3  # the test sees 2 %


def test_normals_are_normal():
    n = _many("normals")
    assert stats.kstest(n, "norm").pvalue > 1e-3
    assert stats.kstest(n * 1.02, "norm").pvalue < 1e-3
    assert abs(stats.kurtosis(n)) < 5 * math.sqrt(24 / len(n))


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5])
def test_neighbouring_normals_are_independent(lag):
    n = torch.from_numpy(_many("normals"))
    for one, other in ((n, n), (n * n - 1, n * n - 1), (n, n * n - 1)):
        product = one[lag:] * other[:-lag]
        assert abs(product.mean() / product.std()) * math.sqrt(len(product)) < 4.5


def test_exponentials_are_exponential_and_their_signs_independent():
    drawn = _many("signed_exponentials")
    assert stats.kstest(abs(drawn), "expon").pvalue > 1e-3
    assert stats.kstest(abs(drawn) * 1.02, "expon").pvalue < 1e-3
    assert stats.kstest(drawn, "laplace").pvalue > 1e-3


def _word(upper):
    """Words whose uniform is upper * 2^-24."""
    return torch.as_tensor(upper, dtype=torch.int64) << 8


def test_the_ends_of_the_range_are_finite():
    upper = _word([0, 1, 2**24 - 1])
    expected = [0.0, -math.log1p(-(2.0**-24)), 24 * math.log(2)]
    assert eager_philox._exponential(upper).tolist() == pytest.approx(expected, rel=1.2e-7)
    assert math.copysign(1.0, eager_philox._exponential(upper)[0]) == 1.0
    radius = eager_philox._normal_pair(upper, _word([0, 0, 0]))[0]
    assert radius[0] == 0 and radius[2] == pytest.approx(math.sqrt(48 * math.log(2)), rel=2e-7)


def test_exponentials_are_within_1e_7_of_the_logarithm():
    upper = torch.cat([torch.arange(0, 2**24, 37), torch.arange(2**24 - 4096, 2**24)])
    exact = -torch.log1p(-upper.double() * 2.0**-24)
    error = (eager_philox._exponential(_word(upper)).double() - exact).abs()
    assert (error <= 1e-7 * exact).all()  # all 2^24: 8.1e-8


def test_normals_are_within_1e_6_of_box_and_muller():
    """The bound over all 2^48 pairs of words, from the errors of radius and angle, is 8.3e-7."""
    radii = torch.cat([torch.arange(2**24 - 256, 2**24), torch.arange(0, 2**24, 2**18 + 3)])
    turns = torch.arange(0, 2**24, 6007)
    radius = (-2 * torch.log1p(-radii.double() * 2.0**-24)).sqrt()[:, None]
    angle = turns.double() * (2 * math.pi / 2**24)
    across, up = eager_philox._normal_pair(_word(radii)[:, None], _word(turns)[None])
    assert (across.double() - radius * angle.cos()).abs().max() < 1e-6
    assert (up.double() - radius * angle.sin()).abs().max() < 1e-6


def test_random_integers_are_uniform():
    drawn = philox.random_integers(4, torch.arange(20000), streams.TARGET, 0, 9)
    counts = torch.bincount(drawn, minlength=9)
    assert len(counts) == 9
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_random_integers_below_a_tensor_of_bounds(device):
    high = torch.tensor([1, 2, 10, 1000, 2**31], device=device).repeat(200)
    ids = torch.arange(1000, device=device)
    drawn = philox.random_integers(4, ids, streams.TARGET, 0, high)
    assert drawn.dtype == torch.int64 and (drawn >= 0).all() and (drawn < high).all()
    assert (drawn[0::5] == 0).all() and drawn[4::5].max() > 2**30
    alone = philox.random_integers(4, ids[3:4], streams.TARGET, 0, 1000)
    assert torch.equal(alone, drawn[3:4])


def _torch_words(seed, ids, stream, calls):
    """What any device but the CPU draws."""
    counter = (torch.arange(calls)[None], stream[:, None], ids[:, None], ids[:, None] >> 32)
    c0, c1, c2, c3 = (word & 0xFFFFFFFF for word in counter)
    return torch.stack(eager_philox.philox4x32(c0, c1, c2, c3, seed), dim=-1).flatten(1)


@pytest.mark.parametrize("seed", [0, -1, 0xA4093822_299F31D0, 2**64 - 2])
@pytest.mark.parametrize(
    "batch, calls",
    # one block; rows and calls that no block divides; rows longer than a block; columns of one
    [(1, 1), (7, 5), (100, 196), (211, 197), (3, 20_001), (2, 40_003), (20_001, 1), (0, 3), (3, 0)],
)
def test_numpy_draws_the_words_of_eager_torch(batch, calls, seed):
    generator = torch.Generator().manual_seed(batch + calls)
    ids = torch.randint(-(2**63), 2**63 - 1, (batch,), generator=generator)
    stream = torch.randint(2**32, (batch,), generator=generator)
    drawn = cpu_philox.words(seed, ids.numpy(), stream.numpy(), calls)
    assert drawn.shape == (batch, 4 * calls) and drawn.dtype == np.uint32
    assert np.array_equal(drawn, _torch_words(seed, ids, stream, calls).numpy())


def test_the_size_of_a_block_changes_no_bit(monkeypatch):
    ids, stream = np.arange(5) - 2, np.full(5, 77)
    expected = cpu_philox.words(3, ids, stream, 33)
    for block in (1, 2, 7, 32, 34, 100):
        monkeypatch.setattr(cpu_philox, "_BLOCK", block)
        assert np.array_equal(cpu_philox.words(3, ids, stream, 33), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_numpy_give_the_same_draws(kind):
    ids, draws = _keys("cpu")
    drawn = []
    for source in (eager_philox.EAGER, cpu_philox.NUMPY):
        draw = getattr(source, kind)
        drawn.append([draw(-5, ids, streams.USER, draws, count) for count in (0, 1, 2, 999, 4000)])
    for one, other in zip(*drawn, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_which_draws_run_is_the_registrys_choice():
    ids = torch.arange(2)
    assert philox._draws(ids) is cpu_philox.NUMPY
    assert philox._draws(ids.to("meta")) is eager_philox.EAGER
    with backend.use_backend("reference"):
        assert philox._draws(ids) is eager_philox.EAGER


@pytest.mark.parametrize("kind", KINDS)
def test_draws_can_be_traced_and_faked(kind):
    ids = torch.arange(3)
    compiled = torch.compile(_eager, fullgraph=True, backend="eager")
    assert torch.equal(compiled(kind, 4, ids, 1, 9), _eager(kind, 4, ids, 1, 9))
    with FakeTensorMode():
        drawn = _eager(kind, 4, torch.arange(3), 1, 9)
    assert isinstance(drawn, FakeTensor) and drawn.shape == (3, 9)


@pytest.mark.parametrize("high", [0, -1, 2**31 + 1])
def test_an_impossible_bound_is_an_error(high):
    with pytest.raises(ValueError, match=r"high must lie in \[1, 2\^31\]"):
        philox.random_integers(0, torch.arange(2), streams.TARGET, 0, high)


def test_no_generator_is_read_or_written():
    before = torch.get_rng_state()
    torch.manual_seed(1)
    one = philox.normals(0, torch.arange(2), 0, 0, 9)
    torch.manual_seed(2)
    assert torch.equal(philox.normals(0, torch.arange(2), 0, 0, 9), one)
    state = torch.get_rng_state()
    philox.random_integers(0, torch.arange(2), 0, 0, 9)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
