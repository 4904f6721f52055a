"""The contract of Philox draws: published vectors, the counter's layout, committed bits."""

import pytest
import torch
from philox_problems import eager

from fastadv.kernels.noise import streams
from fastadv.ops import backend
from fastadv.ops.noise import philox
from fastadv.ops.noise import reference as eager_philox

if backend.triton_is_installed():
    import triton
    import triton.language as tl

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


needs_triton = pytest.mark.skipif(
    not backend.triton_is_installed(), reason="needs triton, which is installed on Linux only"
)


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
    return eager(kind, GOLDEN_SEED, ids, GOLDEN_DRAW, 6, streams.START_NORMAL)


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
