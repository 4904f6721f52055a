"""Random starting points in an eps-ball around x, keyed by (seed, sample id, draw)."""

import functools
from typing import Literal, NamedTuple, get_args

import torch

from fastadv.kernels.noise import streams
from fastadv.ops import layout, reduction, registry, rounding
from fastadv.ops.noise import philox
from fastadv.ops.noise.cpu import NUMPY
from fastadv.ops.noise.reference import EAGER, Draws
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import box as boxes
from fastadv.ops.steps import l1_projection

Kind = Literal[
    "linf_uniform",
    "linf_gaussian",
    "l2_uniform",
    "l2_sphere",
    "l2_gaussian",
    "l1_uniform",
    "l1_gaussian",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
ELEMENTWISE: tuple[Kind, ...] = ("linf_uniform", "linf_gaussian")  # without a norm

_TINY = 1e-12  # guards 0/0: a draw of zeros starts at x (D = 1, one in 2^24)


class _Key(NamedTuple):
    """Where a start's numbers come from: who draws them, and the first part of their counter."""

    source: Draws
    seed: int
    sample_ids: torch.Tensor
    draws: torch.Tensor

    def normals(self, size: int) -> torch.Tensor:
        key = self.seed, self.sample_ids, streams.START_NORMAL, self.draws
        return self.source.normals(*key, size)

    def uniforms(self, size: int) -> torch.Tensor:
        key = self.seed, self.sample_ids, streams.START_UNIFORM, self.draws
        return self.source.uniforms(*key, size)

    def signed_exponentials(self, size: int) -> torch.Tensor:
        key = self.seed, self.sample_ids, streams.START_EXPONENTIAL, self.draws
        return self.source.signed_exponentials(*key, size)


def _radial(
    kind: Kind,
    key: _Key,
    radius: torch.Tensor,
    deviation: torch.Tensor,
    size: int,
    held: torch.Tensor | None,
) -> torch.Tensor:
    """(B, size) of a kind that is scaled by a norm; radius, deviation: (B, 1). held: (B, size)
    bool, elements that do not move, which have no part in it."""
    extra = {"l2_uniform": 2, "l1_uniform": 1}.get(kind, 0)
    if kind == "l1_uniform":
        v = key.signed_exponentials(size + extra).to(radius.dtype)
        v = v if held is None else _zero_where(held, v)
        norm = reduction.tree_sum(v.abs())[:, None]
    else:
        v = key.normals(size + extra).to(radius.dtype)
        v = v if held is None else _zero_where(held, v)
        norm = rounding.root(reduction.tree_sum(v * v)[:, None])
    factor = radius / norm.clamp_min(_TINY)
    if kind == "l2_gaussian":
        factor = torch.where(norm * deviation <= radius, deviation, factor)
    return v[:, :size] * factor


def _zero_where(held: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """v, (B, size or more), with 0 for the elements that are held."""
    v[:, : held.shape[1]].masked_fill_(held, 0.0)
    return v


def _offset(
    kind: Kind,
    key: _Key,
    radius: torch.Tensor,
    deviation: torch.Tensor,
    size: int,
    held: torch.Tensor | None,
) -> torch.Tensor:
    """(B, size) start minus x, before any clamp to the box. radius, deviation: (B, 1), in
    L-infinity also (B, size)."""
    if kind == "linf_uniform":
        u = key.uniforms(size)
        # (2 u - 1) * radius with one rounding: u - 1/2 and 2 * radius are exact
        return u.to(radius.dtype).sub_(0.5).mul_(2.0 * radius)
    if kind == "linf_gaussian":
        return (key.normals(size).to(radius.dtype) * deviation).clamp(-radius, radius)
    if kind == "l1_gaussian":
        return key.normals(size).to(radius.dtype) * deviation
    return _radial(kind, key, radius, deviation, size, held)


def drawn_start(
    source: Draws, x, sample_ids, draws, eps, eps_rows, lo, hi, seed, kind, scale, box
) -> torch.Tensor:
    """The op `fastadv::random_start` by the numbers of `source`; its arguments by position."""
    if x.numel() == 0:
        return torch.empty_like(x)
    batch, dtype = x.shape[0], layout.compute_dtype(x)
    radius = x.new_full((batch,), eps, dtype=dtype) if eps_rows is None else eps_rows.to(dtype)
    radius, held, unit, lower, upper = radius[:, None], None, None, lo, hi
    if box is not None:
        lower, upper = (side.reshape(batch, -1) for side in boxes.bounds_of(box, x))
        held, unit = lower >= upper, boxes.unit_of(box, x)
    if unit is not None and kind in ELEMENTWISE:
        radius = radius * unit.reshape(batch, -1)
    deviation = radius if scale is None else torch.full_like(radius, scale)
    key = _Key(source, seed, sample_ids, draws)
    delta = _offset(kind, key, radius, deviation, x[0].numel(), held)
    if unit is not None and kind not in ELEMENTWISE:
        delta = delta * unit.reshape(batch, -1)
    rows = x.to(dtype).reshape(batch, -1)
    if kind == "l1_gaussian":
        moved = l1_projection.project_rows(rows, delta, rows, radius, lo, hi)
    else:
        moved = delta.add_(rows)
        torch.clamp(moved, lower, upper, out=moved)  # type: ignore[call-overload]
    moved = moved.view(x.shape)
    return moved if _is_stored_as(moved, x) else torch.empty_like(x).copy_(moved)


def _is_stored_as(moved: torch.Tensor, x: torch.Tensor) -> bool:
    return moved.dtype == x.dtype and moved.is_contiguous() and x.is_contiguous()


def _launch_start(x, *arguments) -> torch.Tensor:
    out = torch.empty_like(x)
    registry.kernels("noise.start").launch_random_start(
        out,
        x,
        *arguments,
        inner=layout.inner_extent(x, torch.contiguous_format),
        channels_last=not x.is_contiguous(),
    )
    return out


_START = registry.register(
    "random_start(Tensor x, Tensor sample_ids, Tensor draws, float eps, Tensor? eps_rows, "
    "float lo, float hi, int seed, str kind, float? scale, Tensor? box) -> Tensor",
    reference=functools.partial(drawn_start, EAGER),
    cpu=functools.partial(drawn_start, NUMPY),
    cpu_dtypes=None,
    launch=_launch_start,
    fake=lambda x, *args: torch.empty_like(x),
    tolerance=1e-6,
)


def random_start(
    x: torch.Tensor,
    *,
    eps: float | torch.Tensor,
    seed: int,
    sample_ids: torch.Tensor | None = None,
    draw: int | torch.Tensor = 0,
    kind: Kind = "linf_uniform",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    scale: float | None = None,
    box: torch.Tensor | None = None,
) -> torch.Tensor:
    """A random point of the eps-ball around each sample: clip(x + delta) to bounds, where delta is

    - "linf_uniform": uniform in [-eps, eps];
    - "linf_gaussian": scale * n clipped to [-eps, eps], n standard normal;
    - "l2_uniform": uniform in the L2 ball; "l2_sphere": uniform on its surface;
    - "l2_gaussian": scale * n, shortened to the length eps where it is longer;
    - "l1_uniform": uniform in the L1 ball;
    - "l1_gaussian": scale * n, projected onto the L1 ball and bounds together.

    x: (B, ...), any float dtype and memory format, kept by the result. eps: in input units; float
    or (B,). seed: any integer, taken modulo 2^64. sample_ids: (B,) integers, 0..B-1 if not given:
    give data-set indices to get the same start in any batch. draw: the number of the restart, an
    integer in [0, 2^24) or (B,) integers, whose values are taken modulo 2^24. bounds=None clamps
    nothing. scale: standard deviation of the Gaussian kinds, eps if not given. box: (B, 2, D), what
    each element may be, in place of bounds: one whose bounds meet stays at x and counts in no norm;
    (B, 3, D) gives what delta, and with it eps, is measured in; see `fastadv.ops.steps.box`; not
    for "l1_gaussian". Raises ValueError for an unknown kind, negative eps or scale, a draw out of
    range, or shapes that do not fit.

    The start of a sample is a pure function of (seed, sample id, draw): batch, order, memory format
    and threads change no bit, and no generator is read. The L-infinity kinds are the same bits on
    every device; those with a norm agree within 4 ULP of delta.

    Example: `x_adv = fastadv.ops.noise.start.random_start(x, eps=8/255, seed=0, sample_ids=index)`.
    Source: Madry et al. 2018, arXiv:1706.06083; balls: Barthe et al. 2005, arXiv:math/0503650
    (with two normals, or one exponential, more than there are elements); "l1_gaussian": Croce and
    Hein 2021, arXiv:2103.01208.
    """
    arguments = _checked(x, eps, seed, sample_ids, draw, kind, bounds, scale, box)
    return _START(
        layout.in_format(x, layout.dense_format(x) or torch.contiguous_format), *arguments
    )


def random_start_reference(
    x: torch.Tensor,
    *,
    eps: float | torch.Tensor,
    seed: int,
    sample_ids: torch.Tensor | None = None,
    draw: int | torch.Tensor = 0,
    kind: Kind = "linf_uniform",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    scale: float | None = None,
    box: torch.Tensor | None = None,
) -> torch.Tensor:
    """The eager twin of `random_start`: it defines the result."""
    arguments = _checked(x, eps, seed, sample_ids, draw, kind, bounds, scale, box)
    return drawn_start(EAGER, x, *arguments)


def _checked(
    x: torch.Tensor,
    eps: float | torch.Tensor,
    seed: int,
    sample_ids: torch.Tensor | None,
    draw: int | torch.Tensor,
    kind: Kind,
    bounds: tuple[float, float] | None,
    scale: float | None,
    box: torch.Tensor | None,
) -> tuple:
    """The op's arguments after x; values of tensors are not checked (no synchronisation)."""
    if x.ndim == 0 or not x.is_floating_point():
        raise ValueError(f"x must be a (B, ...) float tensor; got {tuple(x.shape)} {x.dtype}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}; got {kind!r}")
    for name, value in (("eps", eps), ("scale", scale)):
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"{name} must not be negative; got {value}")
    if sample_ids is None:
        sample_ids = torch.arange(x.shape[0], device=x.device)
    if not isinstance(draw, torch.Tensor):
        if not 0 <= draw < 1 << streams.DRAW_BITS:
            raise ValueError(f"draw must lie in [0, 2^{streams.DRAW_BITS}); got {draw}")
        draw = torch.full((x.shape[0],), draw, dtype=torch.int32, device=x.device)
    ids = _integer_rows("sample_ids", sample_ids, x, torch.int64)
    draws = _integer_rows("draw", draw, x, torch.int32)
    radius = step_arguments.scalar_or_rows("eps", eps, x)
    lo, hi = step_arguments.check_bounds(bounds)
    if box is not None:
        boxes.check_box(box, x)
    if box is not None and kind == "l1_gaussian":
        raise ValueError("box is not taken with kind 'l1_gaussian': use 'l1_uniform'")
    return ids, draws, *radius, lo, hi, philox.signed_seed(seed), kind, scale, box


def _integer_rows(
    name: str, value: torch.Tensor, x: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    if (value.shape, value.device) != (x.shape[:1], x.device) or value.is_floating_point():
        raise ValueError(
            f"{name} must be a ({x.shape[0]},) integer tensor on {x.device}; got "
            f"{tuple(value.shape)} {value.dtype} on {value.device}"
        )
    return value.to(dtype).contiguous()
