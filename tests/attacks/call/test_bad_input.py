"""Contract C6: what cannot be attacked is refused, what weakens an attack is warned of, by name."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Quadratic, mixed_problem

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
    [-0.1, math.nan, math.inf, torch.tensor([0.1, -0.1]), torch.tensor([math.nan])],
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


def _plain(z):
    rows = z.flatten(1)
    return torch.stack([rows.sum(1), rows.square().sum(1), rows[:, 0]], 1)


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", ["first_success", "best"])
def test_nan_logits_of_clean_samples_are_an_error(keep, call):
    y = torch.zeros(6, dtype=torch.long)

    def model(z):
        logits = _plain(z)
        return torch.cat([logits[:2] * float("nan"), logits[2:]])

    with pytest.raises(ValueError, match="the model returns NaN logits for 2 of 6 clean samples"):
        _run(model=model, y=y, attack=_attack(keep=keep), call=call)


@pytest.mark.parametrize("call", [False, True])
def test_nan_logits_are_warned_of_where_clean_samples_are_not_looked_at(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _run(
            model=lambda z: _plain(z) * float("nan"),
            y=torch.zeros(6, dtype=torch.long),
            attack=_attack(keep="last"),
            call=call,
        )
    assert _only(caught, "nan_logits").count == 6


def _only(caught, code):
    found = [w.message for w in caught if getattr(w.message, "code", None) == code]
    assert len(found) == 1, [str(w.message) for w in caught]
    return found[0]


@pytest.mark.parametrize("keep", ["first_success", "best"])
def test_probabilities_are_warned_of(keep):
    problem = mixed_problem(6)
    with pytest.warns(fastadv.AttackWarning, match="returns probabilities") as caught:
        _run(model=lambda z: problem.model(z).softmax(1), attack=_attack(keep=keep))
    warning = _only(caught, "probabilities")
    assert warning.count == 6
    assert issubclass(fastadv.AttackWarning, UserWarning)


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    "model",
    [
        lambda z: _plain(z).detach(),
        lambda z: torch.no_grad()(_plain)(z),
        lambda z: _plain(z.detach()),
        lambda z: _plain(z.data),
        lambda z: torch.from_numpy(_plain(z).detach().numpy().copy()),
        lambda z: 7 * F.one_hot(_plain(z).argmax(1), 3),
    ],
    ids=["detached", "no_grad", "detached input", "data", "numpy", "one-hot"],
)
def test_a_model_without_gradient_is_refused(model, keep, call):
    y = torch.ones(6, dtype=torch.long)
    with torch.no_grad():
        y = _plain(mixed_problem(6).x).argmax(1)
    with pytest.raises(ValueError, match=r"no gradient.*fastadv.BPDA"):
        _run(model=model, y=y, attack=_attack(keep=keep), call=call)


def test_a_model_whose_output_ignores_its_input_is_refused():
    weight = nn.Parameter(torch.ones(3))

    def model(z):
        return z.new_zeros(len(z), 1) + weight  # has a gradient, but not to the input

    with pytest.raises(ValueError, match="no gradient.*fastadv.BPDA"):
        _run(model=model, y=torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", [fastadv.Linf, fastadv.L2, fastadv.L1])
def test_a_zero_gradient_is_warned_of_with_its_count(norm, keep, call):
    x = torch.full((6, 4), 0.5)
    x[4:] = 0.2
    y = torch.zeros(6, dtype=torch.long)

    def model(z):  # flat where z is large
        flat = z.new_tensor([3.0, 0.0, -1.0]) + 0 * z[:, :3]
        slope = torch.stack([3 - z[:, 0], z[:, 0], z[:, 1] - 1], 1)
        return torch.where(z[:, :1] > 0.4, flat, slope)

    attack = fastadv.pgd(norm(0.05), steps=3, keep=keep)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient: 4 of 6 samples") as caught:
        _run(model, x, y, attack=attack, call=call)
    assert _only(caught, "zero_gradient").count == 4


@pytest.mark.parametrize("keep", KEEPS)
def test_a_gradient_that_vanishes_at_success_is_not_warned_of(keep):
    """The margin loss has no gradient beyond kappa: the sample is fooled, the attack not weak."""
    problem = mixed_problem(12, wrong_every=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run(problem.model, problem.x, problem.y, attack=_attack(loss="margin", keep=keep))


@pytest.mark.parametrize("keep", KEEPS)
def test_a_nan_gradient_is_warned_of_with_its_count(keep):
    x = torch.full((6, 4), 0.5)
    x[4:, 0] = 0.0  # the root has an infinite slope there: 0 * inf

    def model(z):
        noise = 0 * z[:, 0].sqrt()
        return torch.stack([2 + z[:, 1] + noise, z[:, 2], z[:, 3]], 1)

    attack = fastadv.bim(fastadv.Linf(0.1), steps=3, keep=keep)
    with pytest.warns(fastadv.AttackWarning, match="nan_gradient: 2 of 6 samples") as caught:
        _run(model, x, torch.zeros(6, dtype=torch.long), attack=attack)
    assert _only(caught, "nan_gradient").count == 2


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("model", "got"),
    [
        (lambda z: (_plain(z), z), "got tuple"),
        (lambda z: {"logits": _plain(z)}, "got dict"),
        (lambda z: _plain(z)[:-1], r"got \(5, 3\)"),
        (lambda z: _plain(z)[0], r"got \(3,\)"),
        (lambda z: _plain(z)[:, :, None], r"got \(6, 3, 1\)"),
        (lambda z: None, "got NoneType"),
    ],
    ids=["tuple", "dict", "short", "vector", "map", "None"],
)
def test_an_output_that_is_no_row_of_logits_is_refused(model, got, keep, call):
    with pytest.raises(ValueError, match=rf"must return \(B, C\) logits, here \(6, C\); {got}"):
        _run(model=model, attack=_attack(keep=keep), call=call)


def test_a_model_of_one_class_is_refused():
    with pytest.raises(ValueError, match="C >= 2; got C = 1"):
        _run(model=lambda z: z.flatten(1)[:, :1], y=torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
def test_a_model_that_modifies_its_input_is_refused(keep, call):
    with pytest.raises(ValueError, match="modifies its input in place"):
        _run(model=lambda z: _plain(z.mul_(0.5)), attack=_attack(keep=keep), call=call)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(loss="cw"), r"loss must be one of \('ce', 'margin', .*\) or a callable; got 'cw'"),
        (dict(loss=None), "loss must be one of"),
        (dict(loss=3), "loss must be one of"),
        (dict(keep="all"), "keep must be one of.*got 'all'"),
        (dict(random_start="normal"), "random_start must be a bool or one of .*got 'normal'"),
        (dict(random_start="sphere"), "random_start must be a bool or one of .*got 'sphere'"),
        (dict(random_start=None), "random_start must be a bool or one of .*got None"),
        (dict(restarts=3, random_start=False), "restarts=3 needs a random start"),
        (dict(restarts=2, keep="last"), "keep='last' takes restarts=1"),
        (dict(kappa=1.0), "kappa=1 belongs to loss='margin'"),
        (dict(kappa=-1.0, loss="margin"), "kappa must be >= 0"),
        (dict(kappa=math.nan, loss="margin"), "kappa must be"),
        (dict(label_smoothing=0.1, loss="dlr"), "label_smoothing=0.1 belongs to loss='ce'"),
        (dict(label_smoothing=1.5), "label_smoothing in"),
        (dict(steps=0), "steps must be an integer of at least 1; got 0"),
        (dict(steps=2.5), "steps must be an integer"),
        (dict(restarts=0), "restarts must be an integer"),
        (dict(eot=0), "eot must be an integer"),
        (dict(steps=True), "steps must be an integer"),
        (dict(seed=1.5), "seed must be"),
        (dict(sparsity=0.0), "sparsity must be in"),
        (dict(sparsity=math.nan), "sparsity must be in"),
        (dict(sparsity=0.5), "sparsity.*L1"),
        (dict(guard=1e-3), "guard.*L2"),
        (dict(guard=-1.0), "guard"),
    ],
    ids=str,
)
def test_settings_are_checked_where_they_are_given(more, message):
    with pytest.raises((ValueError, TypeError), match=message):
        _attack(**more)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="alpha"):
        fastadv.pgd(fastadv.Linf(0.1), alpha=0.1)
    with pytest.raises(TypeError, match="positional"):
        fastadv.pgd(fastadv.Linf(0.1), 10)


def test_a_radius_alone_is_no_threat_model():
    with pytest.raises(TypeError, match="threat must be"):
        fastadv.pgd(0.1)


def test_restarts_from_one_given_start_are_refused():
    problem = mixed_problem(6)
    with pytest.raises(ValueError, match="restarts.*x_init"):
        _run(x_init=problem.x, attack=_attack(restarts=3))


@pytest.mark.parametrize("target", ["most_likely", "", "untargeted"])
def test_an_unknown_target_rule_is_refused(target):
    with pytest.raises(ValueError, match=r"target must be a \(B,\) tensor or one of"):
        _run(target=target)


@pytest.mark.parametrize(("classes", "target"), [(2, None), (3, "random")])
def test_dlr_of_too_few_classes_names_the_margin_loss(classes, target):
    model = Quadratic(48, classes)
    with pytest.raises(ValueError, match="needs at least .*classes.*loss='margin'"):
        _run(
            model=model,
            y=torch.zeros(6, dtype=torch.long),
            attack=_attack(loss="dlr"),
            target=target,
        )


def test_losses_that_need_or_forbid_a_target_say_so():
    with pytest.raises(ValueError, match="give target=, or use loss='margin'"):
        _run(attack=_attack(loss="difference"))
    with pytest.raises(ValueError, match="loss='kl' moves away .* takes no target="):
        _run(attack=_attack(loss="kl"), target="random")


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda logits, y: F.cross_entropy(logits, y), r"got \(\)"),
        (lambda logits, y: logits, r"got \(6, 5\)"),
        (lambda logits, y: F.cross_entropy(logits, y, reduction="none")[:, None], r"got \(6, 1\)"),
        (lambda logits, y: 1.0, "got float"),
    ],
    ids=["mean", "matrix", "column", "float"],
)
def test_a_loss_must_give_one_value_a_sample(loss, got, keep):
    with pytest.raises(ValueError, match=rf"loss must map.*\(6,\); {got}.*reduction='none'"):
        _run(attack=_attack(loss=loss, keep=keep), y=torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, y: F.cross_entropy(logits.detach(), y, reduction="none"),
        lambda logits, y: (logits.argmax(1) != y).float(),
    ],
    ids=["detached", "0-1"],
)
def test_a_loss_without_gradient_is_refused(loss):
    problem = mixed_problem(6)
    with torch.no_grad():
        y = problem.model(problem.x).argmax(1)
    with pytest.raises(ValueError, match="loss.*gradient"):
        _run(attack=_attack(loss=loss), y=y)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(batching="dynamic"), "batching must be one of .*got 'dynamic'"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(batch_size=-3), "batch_size must be at least 1"),
        (dict(batch_size=2.5), "batch_size must be"),
    ],
    ids=str,
)
def test_execution_is_checked(more, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fastadv.Execution(**more)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((0.5,), (-1.0,)), (0.5, 0.5), ((0.5,), (math.nan,))],
    ids=str,
)
def test_mean_and_std_must_be_one_float_a_channel(mean, std):
    with pytest.raises(ValueError, match="mean and std must be one float a channel, std > 0"):
        fastadv.Normalized(nn.Identity(), mean=mean, std=std)


@pytest.mark.parametrize("keep", KEEPS)
def test_normalisation_of_other_channels_is_refused(keep):
    problem = mixed_problem(6)
    model = fastadv.Normalized(problem.model, mean=(0.5, 0.5), std=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"x must have 2 channels.*got \(6, 3, 4, 4\)"):
        _run(model=model, attack=_attack(keep=keep))


def test_rfgsm_of_another_norm_names_pgd():
    with pytest.raises(ValueError, match="rfgsm is defined for Linf only.*use pgd"):
        fastadv.rfgsm(fastadv.L2(0.5))


def test_bpda_attacks_what_has_no_gradient():
    problem = mixed_problem(24)

    def quantise(z):
        return (z * 16).round() / 16

    blocked = nn.Sequential(fastadv.BPDA(quantise), problem.model)
    with torch.no_grad():
        y = blocked(problem.x).argmax(1)
    attack = fastadv.bim(fastadv.Linf(0.1), steps=5)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient: 24 of 24"):
        assert not attack.run(lambda z: problem.model(quantise(z)), problem.x, y).success.any()
    assert attack.run(blocked, problem.x, y).success.any()
