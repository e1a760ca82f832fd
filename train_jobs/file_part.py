"""A part of a job file: frozen, and a key that it does not know is an error."""

from pydantic import BaseModel, ConfigDict


class FilePart(BaseModel):
    """Base of every part."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
