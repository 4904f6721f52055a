"""`import fastadv` stays light: attacks, and what they do not need, are loaded when named."""

import importlib
import inspect
import subprocess
import sys

import pytest

import fastadv

LATER = ("attacks", "ensemble", "engine", "oracle", "graphs", "tuning")
LATER += ("evaluation", "training", "recipes", "plots", "cli", "demo", "compat")


def test_import_fastadv_loads_no_attack_and_no_training_and_gives_every_public_name():
    code = """
import sys, fastadv
print(*(m for m in sys.modules if m.startswith('fastadv.')))
fastadv.training.FastAT, fastadv.evaluate, fastadv.evaluation.Curve
fastadv.attacks.Attack, fastadv.ensemble.autoattack
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[1] for name in done.stdout.split()}
    assert "threat_model" in loaded and not loaded & set(LATER)
    for name in fastadv.__all__:
        assert getattr(fastadv, name) is not None
        assert name in dir(fastadv)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'pdg'"):
        fastadv.pdg  # noqa: B018


PACKAGES = (
    "attacks",
    "compat.autoattack",
    "compat.robustbench",
    "compat.torchattacks",
    "data",
    "ensemble",
    "evaluation",
    "models",
    "ops",
    "plots",
    "recipes",
    "training",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_prompt_offers_the_public_names_of_a_package_and_no_others(name):
    package = importlib.import_module(f"fastadv.{name}")
    assert dir(package) == sorted(package.__all__)
    assert all(getattr(package, public) is not None for public in dir(package))


def test_a_prompt_offers_the_public_names_of_fastadv_and_no_others():
    assert set(dir(fastadv)) == {*fastadv.__all__, "evaluation", "__version__"}
    modules = {name for name in dir(fastadv) if inspect.ismodule(getattr(fastadv, name))}
    assert modules == {"evaluation", "objectives", "ops", "training"}
