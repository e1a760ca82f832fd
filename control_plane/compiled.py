"""The only module that imports numba: a typed `compiled` decorator; machine code is cached on disk between processes.

Where no folder can be written for the cache (a read-only install without a home folder), every process compiles anew.
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile for flat numpy arrays; division follows numpy (no Python zero check on the hot path). Other threads run
    meanwhile."""
    try:
        return cast(Function, njit(cache=True, error_model="numpy", nogil=True)(function))
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return cast(Function, njit(error_model="numpy", nogil=True)(function))
