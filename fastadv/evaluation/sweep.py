"""Robust accuracy at several radii, for little more than the dearest of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fastadv import diagnostics
from fastadv.attacks import Attack
from fastadv.attacks.call.inputs import check_model
from fastadv.elements import has_radius
from fastadv.ensemble.constructor import AutoAttack
from fastadv.evaluation.accuracy import check_one_size, evaluate, generator_put_back
from fastadv.evaluation.checkpoint import digest_of_model
from fastadv.evaluation.clean import describe_model, device_of, without_wrapper
from fastadv.evaluation.curve import Curve, checked_radii
from fastadv.evaluation.display import Watch, shown
from fastadv.evaluation.distances import DistanceReport
from fastadv.evaluation.environment import describe_environment, now
from fastadv.evaluation.processes import exchange_of_processes
from fastadv.evaluation.question import Question
from fastadv.evaluation.radii import AtRadii, at_radius
from fastadv.evaluation.samples import Data, Samples
from fastadv.evaluation.tuned import execution_for
from fastadv.execution import Auto, Execution
from fastadv.isolation import Model, module_of
from fastadv.tuning.table import in_words


def robustness_curve(
    model: Model,
    data: Data,
    attack: Attack | AutoAttack,
    eps: Sequence[float],
    *,
    batch_size: int | None = None,
    execution: Execution | Auto | None = None,
    progress: bool | Watch = True,
) -> Curve:
    """Clean accuracy, and robust accuracy at every radius in `eps`, in one pass over the data.

    The radii are attacked from the largest down. A sample that survives one counts as robust at
    every smaller one, whose ball lies inside; one whose adversarial example lies within a smaller
    radius is broken there as well; only the others are attacked again. attack: an attack or an
    ensemble, whose own radius is replaced: see `fastadv.evaluation.at_radius`. eps: in any order.
    An attack without a radius, as `fastadv.fab(fastadv.L2())`, runs once, and the curve is that of
    its distances: see `DistanceReport.curve`.
    Other arguments as in `evaluate`; under torchrun every process attacks everything. Unlike
    separate evaluations, a sample that a weak attack breaks at a small radius only counts as
    robust there, so the curve may lie above them where the attack is far from its best. Raises
    ValueError for radii that are no different numbers >= 0; at 0 it is the clean accuracy.

    Example: `fastadv.robustness_curve(net, (x, y), attack, eps=[k / 255 for k in (1, 2, 4, 8)])`.
    """
    check_model(model)
    date, radii = now(), checked_radii(eps)
    check_one_size(attack)
    attacks = [at_radius(attack, radius) for radius in radii]
    if not has_radius(attack.threat):
        found = evaluate(
            model, data, attack, batch_size=batch_size, execution=execution, progress=progress
        )
        assert isinstance(found, DistanceReport)
        return found.curve(radii)
    model = without_wrapper(model)
    with generator_put_back(), exchange_of_processes(None) as exchange:
        how = execution_for(
            execution, model, data, attacks[-1], batch_size=batch_size, path=None, exchange=exchange
        )
    size = how.batch_size if batch_size is None else batch_size
    judged = Question.of(attack).objective is not None
    samples = Samples(data, batch_size=size, judged=judged)
    how = replace(how, batch_size=samples.batch_size)
    run = AtRadii(model, attacks, how, device_of(model), is_sized=samples.is_sized)
    with generator_put_back(), shown(progress) as watch:
        for block in samples.blocks():
            run.attack_block(block, watch, samples.expected)
        run.finish(watch, samples.expected)
    if run.done == 0:
        raise ValueError("data is empty: there is nothing to evaluate")
    for code, count in run.all_warnings().items():
        diagnostics.warn(code, count, run.done, of_ensemble=isinstance(attack, AutoAttack))
    device = run.device or samples.device
    return Curve(
        model=describe_model(model, digest_of_model(module_of(model))),
        attack=repr(attacks[-1]),
        eps=tuple(radii),
        clean_correct=torch.cat(run.clean_correct),
        robust=torch.cat(run.robust),
        attacked=tuple(run.attacked),
        forwards=tuple(run.forwards),
        backwards=tuple(run.backwards),
        warnings=run.all_warnings(),
        environment=describe_environment(device),
        execution=in_words(how),
        norm=attacks[-1].threat.norm,
        date=date,
    )
