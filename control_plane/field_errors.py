"""Says in one line what is wrong with a field of a user's file: its name, its value, and the fix where one is known."""

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel


def explain(model: type[BaseModel], source: str, error: Mapping[str, Any], what: str) -> str:
    """``error`` is one of a pydantic ValidationError's; ``what`` is the file's word for a field ("setting")."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        return f"{source}: {path + ': ' if path else ''}{message}" + (f" (got {error['input']!r})" if path else "")
    known = sorted(_part(model, error["loc"][:-1]).model_fields)
    close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return f"{source}: unknown {what} {path!r}; {hint}"


def _part(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel]:
    """The model that the path leads to; the number of an item leads to the model of the items."""
    for name in path:
        if isinstance(name, str):
            model = _model_in(model.model_fields[name].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in ``Model``, ``Model | None`` or ``tuple[Model, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
