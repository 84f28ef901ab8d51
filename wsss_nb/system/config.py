"""The base of every typed configuration object."""

from pydantic import BaseModel, ConfigDict

__all__ = ["VOID", "Config"]

VOID = 255
"""The id of pixels that belong to no class: unlabelled, or the ring VOC draws around objects."""


class Config(BaseModel):
    """A frozen, typed group of settings; an unknown field is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, strict=True, allow_inf_nan=False)
