"""keep="best" returns the highest loss, which an objective need not call a success."""

import warnings

import torch

import fastadv


def test_a_success_on_the_way_is_no_unconfirmed_one():
    """The loss rises past the success: x from 0.5 to 0.7, a success between 0.55 and 0.65 alone."""

    def passed(output, y):
        return (output[:, 0] > 0.55) & (output[:, 0] < 0.65)

    objective = fastadv.Objective(lambda output, y: output[:, 0], success=passed, name="passed")
    attack = fastadv.pgd(
        fastadv.Linf(0.2), steps=4, step_size=0.06, random_start=False, loss=objective, keep="best"
    )
    x = torch.full((3, 1), 0.5, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = attack.run(lambda z: z, x, torch.zeros(3))
    torch.testing.assert_close(result.x_adv, torch.full_like(x, 0.7))
    assert not result.success.any() and (result.step == -1).all()
