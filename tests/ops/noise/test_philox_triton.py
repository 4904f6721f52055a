"""Philox draws in Triton: the bits of eager torch."""

import pytest
import torch
from philox_problems import KINDS, eager, keys

from fastadv.kernels.noise import streams
from fastadv.ops import backend
from fastadv.ops.noise import philox

if backend.triton_is_installed():
    import triton
    import triton.language as tl

    from fastadv.kernels.noise import philox as device_philox

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


pytestmark = pytest.mark.skipif(
    not backend.triton_is_installed(), reason="needs triton, which is installed on Linux only"
)


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


@pytest.mark.parametrize("seed", [0, -1, 2**32 + 17, -(2**63), 2**64 - 2])
@pytest.mark.parametrize("kind", KINDS)
def test_triton_draws_the_same_bits(kind, seed, device):
    ids, draws = keys(device)
    drawn = _triton(kind, seed, ids, draws, 1023)
    assert torch.equal(drawn, eager(kind, seed, ids, draws, 1023))


@pytest.mark.parametrize("count", [1, 15, 3072])
@pytest.mark.parametrize("kind", KINDS)
def test_triton_draws_the_same_bits_of_any_count(kind, count, device):
    ids, draws = keys(device)
    assert torch.equal(_triton(kind, 5, ids, draws, count), eager(kind, 5, ids, draws, count))


def test_triton_draws_the_same_normals_a_million_times(device):
    ids = torch.arange(16, device=device)
    draws = torch.zeros(16, dtype=torch.int32, device=device)
    drawn = _triton("normals", 1, ids, draws, 1 << 16)
    assert torch.equal(drawn, eager("normals", 1, ids, draws, 1 << 16))
