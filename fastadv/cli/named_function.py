"""Functions that a command line names: module:function, called without arguments."""

import importlib
import os
import sys
from typing import Any

from torch import nn

from fastadv.cli.user_error import UserError, said


def called(address: str, *, option: str, example: str) -> Any:
    """What the function at "module:function" returns; UserError, which names --option, otherwise.

    The module is looked for in the current directory first.
    """
    module_name, colon, function_name = address.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"--{option} must be module:function, as in {example}; got {address!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may do anything when it is imported
        hint = ""
        if module_name.endswith(".py"):
            hint = f"; a module has no .py: {module_name[:-3].replace('/', '.')}:{function_name}"
        raise UserError(
            f"--{option}: importing {module_name!r} fails: {said(error)}{hint}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function) or isinstance(function, nn.Module):
        is_there = f", but an object, {type(function).__name__}: name a function that returns it"
        raise UserError(
            f"--{option}: {module_name!r} has no function {function_name!r}"
            f"{'' if function is None else is_there}"
        )
    try:
        return function()
    except Exception as error:
        raise UserError(f"--{option}: {address}() fails: {said(error)}") from error
