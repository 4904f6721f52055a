"""Contract C6: what cannot be attacked is refused, what weakens an attack is warned of, by name."""

import math

import pytest
import torch
import torch.nn.functional as F
from toy_models import mixed_problem

import fastadv

KEEPS = ("first_success", "best", "last")


def _attack(**more):
    return fastadv.pgd(fastadv.Linf(0.1), **(dict(steps=3) | more))


def _run(model=None, x=None, y=None, *, attack=None, call=False, **more):
    problem = mixed_problem(6)
    attack = attack or _attack()
    return (attack if call else attack.run)(
        problem.model if model is None else model,
        problem.x if x is None else x,
        problem.y if y is None else y,
        **more,
    )


@pytest.mark.parametrize("eps", [8, 8.0, torch.tensor([0.1, 8.0])], ids=str)
def test_a_radius_in_pixel_units_is_refused(eps):
    with pytest.raises(ValueError, match=r"eps=8 is larger than the box.*8/255, not 8"):
        fastadv.Linf(eps)


@pytest.mark.parametrize(("make", "eps"), [(fastadv.L2, 8.0), (fastadv.L1, 60.0)])
def test_a_radius_wider_than_the_box_is_refused_once_the_size_is_known(make, eps):
    with pytest.raises(ValueError, match="is larger than the box, whose diameter is"):
        _run(attack=fastadv.pgd(make(eps)))


@pytest.mark.parametrize("make", [fastadv.Linf, fastadv.L2, fastadv.L1])
@pytest.mark.parametrize(
    "eps",
    [
        -0.1,
        math.nan,
        -math.inf,
        torch.tensor([0.1, -0.1]),
        torch.tensor([math.nan]),
        torch.tensor([0.1, math.inf]),
    ],
    ids=str,
)
def test_a_radius_must_be_finite_and_not_negative(make, eps):
    with pytest.raises(ValueError, match=f"{make.__name__} eps must be a finite float"):
        make(eps)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0), (0.0,)], ids=str)
def test_bounds_must_be_ordered(bounds):
    with pytest.raises(ValueError, match=r"bounds must be \(lo, hi\)"):
        fastadv.Linf(0.1, bounds=bounds)


@pytest.mark.parametrize("shape", [(5,), (6, 1), (0,), (7,)], ids=str)
@pytest.mark.parametrize("name", ["eps", "step_size"])
def test_per_sample_radii_and_steps_must_have_one_value_a_sample(name, shape):
    values = torch.full(shape, 0.1)
    with pytest.raises(ValueError, match=rf"{name} must be a .*\(6,\)|{name} must be .*\(B,\)"):
        if name == "eps":
            _run(attack=fastadv.pgd(fastadv.L2(values), step_size=0.1))
        else:
            _run(attack=_attack(step_size=values))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, torch.full((6,), math.nan)], ids=str)
def test_a_step_must_be_finite_and_not_negative(value):
    with pytest.raises(ValueError, match="step_size must be"):
        _run(attack=_attack(step_size=value))


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_images_outside_bounds_are_refused(shift, call):
    problem = mixed_problem(6)
    with pytest.raises(ValueError, match=r"x must lie in bounds \(0.0, 1.0\); got values from"):
        _run(x=problem.x + shift, call=call)


def test_normalised_images_are_pointed_to_normalized():
    problem = mixed_problem(6)
    with pytest.raises(ValueError, match="fastadv.Normalized"):
        _run(x=(problem.x - 0.5) / 0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None], ids=str)
def test_images_that_are_not_finite_are_refused(bounds, bad):
    problem = mixed_problem(6)
    problem.x[2, 1, 3, 0] = bad
    with pytest.raises(ValueError, match="x has NaN|x must be finite|x must lie in bounds|x has"):
        _run(x=problem.x, attack=fastadv.pgd(fastadv.Linf(0.1, bounds=bounds)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_start_iterates_that_are_not_finite_are_refused(bad):
    problem = mixed_problem(6)
    start = problem.x.clone()
    start[2, 1, 3, 0] = bad
    with pytest.raises(ValueError, match="x_init"):
        _run(x_init=start)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_integer_images_are_refused(dtype):
    with pytest.raises(TypeError, match=r"x must be a floating-point.*x.float\(\) / 255"):
        _run(x=torch.zeros(6, 3, 4, 4, dtype=dtype))


def test_things_that_are_no_tensors_are_refused():
    with pytest.raises(TypeError, match="x must be a torch.Tensor"):
        _run(x=[[0.5]])
    with pytest.raises(TypeError, match=r"y must be a \(B,\) integer tensor"):
        _run(y=[0, 1, 2, 3, 4, 0])
    with pytest.raises(TypeError, match=r"target must be a \(B,\)"):
        _run(target=3)
    with pytest.raises(TypeError, match="model must be callable"):
        _run(model=torch.zeros(3))
    with pytest.raises(TypeError, match="sample_ids must be"):
        _run(sample_ids=list(range(6)))


def test_a_scalar_image_is_refused():
    with pytest.raises(ValueError, match="x must have a batch dimension"):
        _run(x=torch.tensor(0.5))


@pytest.mark.parametrize("name", ["y", "target"])
@pytest.mark.parametrize(
    "labels", [torch.zeros(6), torch.zeros(6, dtype=torch.bool), torch.zeros(6, 5)], ids=str
)
def test_labels_must_be_integers(name, labels):
    with pytest.raises(TypeError, match=f"{name} must be an integer tensor of class indices"):
        _run(**{name: labels})


@pytest.mark.parametrize("name", ["y", "target"])
@pytest.mark.parametrize("shape", [(5,), (6, 1), (), (0,)], ids=str)
def test_labels_must_have_one_value_a_sample(name, shape):
    with pytest.raises(ValueError, match=rf"{name} must have shape \(6,\); got"):
        _run(**{name: torch.zeros(shape, dtype=torch.long)})


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ["y", "target"])
@pytest.mark.parametrize("bad", [-1, 5, 1 << 40, -100])
def test_labels_must_be_classes_of_the_model(bad, name, keep, call):
    labels = torch.zeros(6, dtype=torch.long)
    labels[3] = bad
    with pytest.raises(ValueError, match=rf"{name}.* \[0, 5\), the classes of the model"):
        _run(**{name: labels}, attack=_attack(keep=keep), call=call)


@pytest.mark.parametrize("keep", KEEPS)
def test_labels_are_checked_before_a_loss_of_the_user_sees_them(keep):
    # on a GPU an index out of range in F.cross_entropy poisons the process
    labels = torch.tensor([0, 1, 2, 3, 4, 7])

    def loss(logits, y):
        assert int(y.max()) < 5, "the loss was handed a label out of range"
        return F.cross_entropy(logits, y, reduction="none")

    with pytest.raises(ValueError, match=r"the classes of the model"):
        _run(y=labels, attack=_attack(loss=loss, keep=keep))


@pytest.mark.parametrize("name", ["y", "target", "x_init", "sample_ids"])
def test_arguments_on_another_device_are_refused(name):
    value = {
        "x_init": torch.zeros(6, 3, 4, 4, device="meta"),
    }.get(name, torch.zeros(6, dtype=torch.long, device="meta"))
    with pytest.raises(ValueError, match=f"{name} must be"):
        _run(**{name: value})


@pytest.mark.parametrize("name", ["eps", "step_size"])
def test_radii_on_another_device_are_refused_or_moved(name):
    # "meta" has no data to move: a clear error is all that is possible
    value = torch.full((6,), 0.1, device="meta")
    with pytest.raises((ValueError, NotImplementedError, RuntimeError), match="eps|step_size|meta"):
        if name == "eps":
            _run(attack=fastadv.pgd(fastadv.L2(value)))
        else:
            _run(attack=_attack(step_size=value))


@pytest.mark.parametrize(
    "start",
    [torch.zeros(6, 3, 4, 5), torch.zeros(5, 3, 4, 4), torch.zeros(6, 3, 4, 4).double()],
    ids=lambda t: f"{tuple(t.shape)} {t.dtype}",
)
def test_a_start_iterate_must_be_like_x(start):
    with pytest.raises(ValueError, match=r"x_init must be a tensor like x, \(6, 3, 4, 4\)"):
        _run(x_init=start)


def test_sample_ids_must_be_one_integer_a_sample():
    with pytest.raises(TypeError, match="sample_ids must be a"):
        _run(sample_ids=torch.zeros(6))
    with pytest.raises(ValueError, match=r"sample_ids must have shape \(6,\)"):
        _run(sample_ids=torch.arange(5))
