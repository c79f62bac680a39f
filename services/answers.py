"""What answers to programs have in common: of the HTTP interface and of commands."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ResponseModel(BaseModel):
    """Immutable answer, camelCase on the wire; dump it with `by_alias=True`."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)
