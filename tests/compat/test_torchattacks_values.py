"""fastadv.compat.torchattacks on a linear model: steps and starts in closed form."""

import pytest
import torch
from linear_model import LABELS, WEIGHT, Linear

import fastadv
import fastadv.compat.torchattacks as compat

ASCENT = WEIGHT[1].sign().view(1, 1, 2, 2)


def test_fgsm_moves_by_eps_along_the_sign_of_the_gradient(flat):
    x_adv = compat.FGSM(Linear(), eps=0.05)(flat, LABELS)
    assert torch.equal(x_adv, (flat + 0.05 * ASCENT).clamp(0, 1))


@pytest.mark.parametrize("name", ["BIM", "PGD", "EOTPGD", "MIFGSM"])
def test_linear_models_are_attacked_along_one_sign_to_the_edge_of_the_ball(name, flat):
    options = {"random_start": False} if name in ("PGD", "EOTPGD") else {}
    atk = getattr(compat, name)(Linear(), eps=0.05, alpha=0.02, steps=2, **options)
    torch.testing.assert_close(atk(flat, LABELS), (flat + 0.04 * ASCENT).clamp(0, 1))
    atk.steps = 9
    torch.testing.assert_close(atk(flat, LABELS), (flat + 0.05 * ASCENT).clamp(0, 1))


def test_pgdl2_moves_by_alpha_along_the_unit_gradient(flat):
    atk = compat.PGDL2(Linear(), eps=1.0, alpha=0.1, steps=1, random_start=False)
    unit = WEIGHT[1] / WEIGHT[1].norm()
    x_adv = atk(flat, LABELS)
    torch.testing.assert_close(x_adv[:1], flat[:1] + 0.1 * unit.view(1, 1, 2, 2))


def test_eps_for_division_shortens_a_step_as_if_the_loss_were_a_mean(flat):
    loss = torch.nn.functional.cross_entropy
    x = flat.double().requires_grad_()
    (grad,) = torch.autograd.grad(loss(Linear()(x), LABELS), x)
    size = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = (flat.double() + 0.1 * grad / (size + 0.3)).clamp(0, 1)
    atk = compat.PGDL2(
        Linear(), eps=1.0, alpha=0.1, steps=1, random_start=False, eps_for_division=0.3
    )
    torch.testing.assert_close(atk(flat.double(), LABELS), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["BIM", "PGD", "PGDL2", "EOTPGD", "MIFGSM"])
def test_zero_gradient_leaves_the_images_unchanged_and_says_so(name, flat):
    options = {} if name in ("BIM", "MIFGSM") else {"random_start": False}
    atk = getattr(compat, name)(lambda x: x.flatten(1)[:, :2] * 0.0, steps=3, **options)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient"):
        assert torch.equal(atk(flat, LABELS), flat)


def test_ffgsm_lands_on_the_face_that_the_gradient_points_to(flat):
    x_adv = compat.FFGSM(Linear(), eps=0.05, alpha=0.11)(flat, LABELS)
    moved = ASCENT.expand_as(flat) != 0
    torch.testing.assert_close(x_adv[moved], (flat + 0.05 * ASCENT).clamp(0, 1)[moved])
    assert not torch.equal(x_adv[~moved], flat[~moved])


def test_rfgsm_without_steps_is_x_plus_alpha_times_signs_even_beyond_eps():
    x = torch.full((4, 1, 8, 8), 0.5)
    delta = compat.RFGSM(Linear(), eps=0.01, alpha=0.25, steps=0)(x, torch.zeros(4).int()) - x
    assert set(delta.unique().tolist()) == {-0.25, 0.25}


def test_tpgd_starts_at_a_thousandth_of_a_standard_normal():
    x = torch.full((16, 1, 32, 32), 0.5)
    delta = compat.TPGD(Linear(), steps=0)(x) - x
    assert abs(float(delta.std()) - 0.001) < 2e-5  # 4 sigma of the estimate at n = 16384
    assert abs(float(delta.mean())) < 4e-5


def test_pgdl2_starts_have_radii_uniform_up_to_eps():
    x = torch.full((512, 1, 8, 8), 0.5)
    delta = compat.PGDL2(Linear(), eps=0.5, steps=0)(x, torch.zeros(512).int()) - x
    radii = (delta.flatten(1).norm(dim=1) / 0.5).sort().values
    uniform = (torch.arange(512) + 0.5) / 512
    assert float((radii - uniform).abs().max()) < 1.63 / 512**0.5  # Kolmogorov, 1 %


def test_bim_without_steps_counts_them_from_eps():
    assert compat.BIM(Linear(), eps=8 / 255, steps=0).steps == 10
    assert compat.BIM(Linear(), eps=32 / 255, steps=0).steps == 36
