"""Functions whose answer compiled code takes as a constant."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def constant(function: Function) -> Function:
    """What torch.compiler.assume_constant_result does, which imports the whole compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a name that the compiler asks functions for
    return function
