"""What both clamp rules say, and that the one of the installed torch is torch's own behaviour."""

import itertools

import pytest
import torch

from benchmarks.clamping.rules import RULES, clamp_rule, installed_rule

NAN, INF = float("nan"), float("inf")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# name -> the call on (x, low, high), and which bounds it takes
FORMS = {
    "torch.clamp": (lambda x, low, high: torch.clamp(x, low, high), "both"),
    "torch.clamp, by name": (lambda x, low, high: torch.clamp(input=x, max=high, min=low), "both"),
    "torch.clip": (lambda x, low, high: torch.clip(x, low, max=high), "both"),
    "clamp": (lambda x, low, high: x.clamp(low, high), "both"),
    "clip, by name": (lambda x, low, high: x.clip(min=low, max=high), "both"),
    "clamp, None": (lambda x, low, high: x.clamp(low, None), "low"),
    "clamp, min": (lambda x, low, high: x.clamp(min=low), "low"),
    "clamp, max": (lambda x, low, high: x.clamp(max=high), "high"),
    "clip, None": (lambda x, low, high: torch.clip(x, None, high), "high"),
    "torch.clamp_min": (lambda x, low, high: torch.clamp_min(x, min=low), "low"),
    "torch.clamp_max": (lambda x, low, high: torch.clamp_max(x, high), "high"),
    "clamp_min": (lambda x, low, high: x.clamp_min(low), "low"),
    "clamp_max": (lambda x, low, high: x.clamp_max(max=high), "high"),
    "torch.clamp_": (lambda x, low, high: torch.clamp_(x.clone(), low, high), "both"),
    "clamp_": (lambda x, low, high: x.clone().clamp_(low, high), "both"),
    "clip_": (lambda x, low, high: x.clone().clip_(max=high, min=low), "both"),
    "clamp_, min": (lambda x, low, high: x.clone().clamp_(min=low), "low"),
    "clamp_min_": (lambda x, low, high: x.clone().clamp_min_(low), "low"),
    "clamp_max_": (lambda x, low, high: x.clone().clamp_max_(high), "high"),
}


def _gradients(name, x, low, high, *, weight=None):
    """(values, the gradient of x, of low, of high), those of them that the form takes."""
    form, takes = FORMS[name]
    bounds = {"both": (low, high), "low": (low, None), "high": (None, high)}[takes]
    leaves = [v for v in (x, *bounds) if isinstance(v, torch.Tensor) and v.requires_grad]
    out = form(x, *bounds)
    return out, *torch.autograd.grad(
        out, leaves, torch.ones_like(out) if weight is None else weight
    )


def _leaf(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


# x outside, at the lower bound, inside, at the upper bound, outside, NaN; bounds 0 and 1
POINTS = [-1.0, 0.0, 0.5, 1.0, 2.0, NAN]
CLAMPED = [0.0, 0.0, 0.5, 1.0, 1.0, NAN]

NUMBERS = {
    ("old", "clamp"): [0, 1, 1, 1, 0, 0],
    ("new", "clamp"): [0, 0, 1, 0, 0, 0],
    ("old", "clamp_min"): [0, 1, 1, 1, 1, 0],
    ("new", "clamp_min"): [0, 0, 1, 1, 1, 0],
    ("old", "clamp_max"): [1, 1, 1, 1, 0, 0],
    ("new", "clamp_max"): [1, 1, 1, 0, 0, 0],
}

# of x, of the lower and of the upper bound
TENSORS = {
    ("old", "clamp"): ([0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]),
    ("new", "clamp"): ([0, 0.5, 1, 0.5, 0, 1], [1, 0.5, 0, 0, 0, 0], [0, 0, 0, 0.5, 1, 0]),
    ("old", "clamp_min"): ([0, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]),
    ("new", "clamp_min"): ([0, 0.5, 1, 1, 1, 1], [1, 0.5, 0, 0, 0, 1]),
    ("old", "clamp_max"): ([1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]),
    ("new", "clamp_max"): ([1, 1, 1, 0.5, 0, 1], [0, 0, 0, 0.5, 1, 1]),
}


@pytest.mark.parametrize(("rule", "name"), NUMBERS)
def test_number_bounds(rule: str, name: str):
    with clamp_rule(rule):
        _, grad = _gradients(name, _leaf(POINTS), 0.0, 1.0)
    assert grad.tolist() == NUMBERS[rule, name]


@pytest.mark.parametrize(("rule", "name"), TENSORS)
def test_tensor_bounds(rule: str, name: str):
    with clamp_rule(rule):
        _, *grads = _gradients(name, _leaf(POINTS), _leaf([0.0] * 6), _leaf([1.0] * 6))
    assert [g.tolist() for g in grads] == list(TENSORS[rule, name])


@pytest.mark.parametrize("rule", RULES)
def test_values_are_those_of_a_clamp(rule: str):
    with clamp_rule(rule):
        out, _ = _gradients("clamp", _leaf(POINTS), 0.0, 1.0)
    torch.testing.assert_close(out.tolist(), CLAMPED, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("as_bound", [float, _leaf])
def test_bounds_that_cross_leave_x_no_gradient(rule: str, as_bound):
    with clamp_rule(rule):
        out, grad, *bounds = _gradients("clamp", _leaf(POINTS[:-1]), as_bound(1.0), as_bound(0.0))
    assert out.tolist() == [0.0] * 5 and grad.tolist() == [0.0] * 5
    assert [b.item() for b in bounds] == ([] if as_bound is float else [0.0, 5.0])


# one pixel at both bounds at once: with numbers the rule of a bound, with tensors all of it
@pytest.mark.parametrize(
    ("rule", "as_bound", "expected"),
    [
        ("old", float, 1.0),
        ("old", torch.tensor, 1.0),
        ("new", float, 0.0),
        ("new", torch.tensor, 1.0),
    ],
)
def test_bounds_that_are_equal(rule: str, as_bound, expected: float):
    with clamp_rule(rule):
        _, grad = _gradients("clamp", _leaf([0.0, 0.5, 1.0]), as_bound(0.5), as_bound(0.5))
    assert grad.tolist() == [0.0, expected, 0.0]


def _same(mine, theirs):
    for own, torchs in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, torchs, rtol=0, atol=0, equal_nan=True)
        assert not (own.signbit() ^ torchs.signbit())[~own.isnan()].any()  # 0.0 is not -0.0
        assert own.stride() == torchs.stride()


# every order of x, low and high, with zeros of both signs, infinities and NaN
EDGES = [-INF, -1.0, -0.0, 0.0, 0.3, 1.0, INF, NAN]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_the_rule_of_the_installed_torch_is_what_it_does_with_tensors(name: str, dtype):
    columns = zip(*itertools.product(EDGES, repeat=3), strict=True)
    leaves = [_leaf(column, dtype) for column in columns]
    weight = torch.linspace(-2, 3, len(EDGES) ** 3).to(dtype)
    weight[::7], weight[3::7] = INF, NAN
    expected = _gradients(name, *leaves, weight=weight)
    with clamp_rule(installed_rule()):
        _same(_gradients(name, *leaves, weight=weight), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_the_rule_of_the_installed_torch_is_what_it_does_with_numbers(name: str, dtype):
    # 0.3 is no number of the halves: which side of it they are on is torch's to say
    x = _leaf([*EDGES, 8 / 255, 1 / 3], dtype)
    weight = torch.tensor([1.0, INF, 2.0, NAN, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], dtype=dtype)
    more = [8 / 255, 1 / 3, 0, 1]  # what rounds, and whole numbers
    for low, high in (*itertools.product(EDGES, repeat=2), *itertools.product(more, repeat=2)):
        expected = _gradients(name, x, low, high, weight=weight)
        with clamp_rule(installed_rule()):
            _same(_gradients(name, x, low, high, weight=weight), expected)


_SHAPES = {
    "scalars": ((2, 3, 4), (), ()),
    "a scalar that needs no gradient": ((2, 3, 4), None, None),
    "by channel": ((2, 3, 4), (3, 1), (1, 3, 1)),
    # both in full: the backward of torch 2.13 fails where x and one of the bounds are narrower
    "wider bounds": ((3, 1), (2, 1, 4), (2, 1, 4)),
    "empty": ((0, 3), (3,), ()),
    "a scalar x": ((), (), ()),
}


@pytest.mark.parametrize("shapes", _SHAPES.values(), ids=_SHAPES.keys())
@pytest.mark.parametrize("name", FORMS)
def test_bounds_are_broadcast_as_torch_does(name: str, shapes):
    if "_" in name and shapes[0] == (3, 1):
        shapes = ((2, 3, 4), *shapes[1:])  # in place x keeps its shape
    generator = torch.Generator().manual_seed(0)

    def drawn(shape, low, high):
        needs_grad = shape is not None
        values = torch.randint(low, high, shape or (), generator=generator).double() / 2
        return values.requires_grad_(needs_grad)

    x, low, high = drawn(shapes[0], -3, 4), drawn(shapes[1], -2, 1), drawn(shapes[2], 1, 3)
    expected = _gradients(name, x, low, high)
    with clamp_rule(installed_rule()):
        _same(_gradients(name, x, low, high), expected)


@pytest.mark.parametrize("name", ["clamp", "clamp_min", "clamp_max"])
def test_mixed_dtypes_and_layouts_are_as_torch_has_them(name: str):
    x = torch.rand(2, 3, 4, 4).round(decimals=1).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    for low, high in ((_leaf(0.3), _leaf(0.7)), (_leaf([[0.3]]), _leaf([[0.7]]))):
        expected = _gradients(name, x, low, high)
        with clamp_rule(installed_rule()):
            mine = _gradients(name, x, low, high)
        _same(mine, expected)
        assert [m.dtype for m in mine] == [e.dtype for e in expected]


@pytest.mark.parametrize("rule", RULES)
def test_gradients_can_be_differentiated_again(rule: str):
    """Of clamp(x)^3 / 3: twice clamp(x) times the square of the first derivative."""
    x, low = _leaf([-1.0, 0.0, 0.5, 1.0, 2.0]), _leaf(0.0)
    with clamp_rule(rule):
        for form, slope in (
            (lambda: x.clamp(0.0, 1.0), NUMBERS[rule, "clamp"]),
            (lambda: x.clamp(min=low), TENSORS[rule, "clamp_min"][0]),
        ):
            clamped = form()
            (first,) = torch.autograd.grad((clamped**3 / 3).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), x)
            assert second.tolist() == (2 * clamped * torch.tensor(slope[:-1]) ** 2).tolist()


@pytest.mark.parametrize("rule", RULES)
def test_what_needs_no_gradient_is_torchs_own(rule: str):
    x = _leaf(POINTS)
    with clamp_rule(rule):
        with torch.no_grad():
            assert not x.clamp(0, 1).requires_grad
            assert x.detach().clone().requires_grad_().clamp_(0.25, 0.75).is_leaf
        with torch.inference_mode():
            assert x.clamp(0, 1).is_inference()
        assert x.detach().clamp(0, 1).grad_fn is None
        assert torch.tensor([1, 2, 3]).clamp(max=2).tolist() == [1, 2, 2]
        out = torch.empty(6, dtype=torch.float64)
        assert torch.clamp(x.detach(), 0, 1, out=out) is out
        with pytest.raises(RuntimeError, match="At least one of 'min' or 'max'"):
            x.clamp()


@pytest.mark.parametrize("rule", RULES)
def test_autocast_leaves_a_clamp_in_its_dtype(rule: str):
    x = _leaf(POINTS, torch.float32)
    with clamp_rule(rule), torch.autocast("cpu", dtype=torch.bfloat16):
        out, grad = _gradients("clamp", x, 0.0, 1.0)
    assert out.dtype == grad.dtype == torch.float32
    assert grad.tolist() == NUMBERS[rule, "clamp"]


@pytest.mark.parametrize("rule", RULES)
def test_in_place_forms_change_their_tensor_and_views_of_it(rule: str):
    leaf = _leaf(POINTS[:-1])
    with clamp_rule(rule):
        whole = leaf * 1.0
        view, version = whole[1:4], whole._version
        assert view.clamp_(0.0, 0.5) is view and whole._version > version
        (grad,) = torch.autograd.grad(whole.sum(), leaf)
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            leaf.clamp_(0.0, 1.0)
    assert whole.tolist() == [-1.0, 0.0, 0.5, 0.5, 2.0]
    assert grad.tolist() == [1.0, *{"old": (1.0, 1.0), "new": (0.0, 0.0)}[rule], 0.0, 1.0]


def test_the_inner_rule_is_in_force_and_none_afterwards():
    x = _leaf([0.0])

    def at_bound():
        return {1.0: "old", 0.0: "new"}[_gradients("clamp", x, 0.0, 1.0)[1].item()]

    with clamp_rule("old"), clamp_rule("new"):
        assert at_bound() == "new"
    with clamp_rule("new"), clamp_rule("old"):
        assert at_bound() == "old"
    with pytest.raises(KeyError), clamp_rule("old" if installed_rule() == "new" else "new"):
        raise KeyError
    assert at_bound() == installed_rule()
    with pytest.raises(ValueError, match="got 'later'"):
        clamp_rule("later")


def test_the_installed_rule_is_measured_past_any_mode():
    torchs = installed_rule()
    for rule in RULES:
        with clamp_rule(rule), torch.inference_mode():
            assert installed_rule() == torchs


def test_the_rule_in_force_is_the_one_that_the_fixture_names(clamp_rule_in_force: str):
    _, grad = _gradients("clamp", _leaf(POINTS), 0.0, 1.0)
    assert grad.tolist() == NUMBERS[clamp_rule_in_force, "clamp"]


@pytest.mark.parametrize("rule", RULES)
def test_other_edges_are_as_they_always_were(rule: str):
    """Of relu, relu6 and hardtanh 0, of the maximum of two tensors 1/2, whatever the clamp rule."""
    x = _leaf([0.0])
    with clamp_rule(rule):
        for form, expected in (
            (torch.relu, 0.0),
            (torch.nn.functional.relu6, 0.0),
            (lambda x: torch.nn.functional.hardtanh(x, 0.0, 1.0), 0.0),
            (lambda x: torch.maximum(x, torch.zeros_like(x)), 0.5),
            (lambda x: torch.min(x, torch.zeros_like(x)), 0.5),
        ):
            assert torch.autograd.grad(form(x).sum(), x)[0].item() == expected
