"""What all configurations have in common."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from xgem.types import ConfigError

Role = Literal["encoder", "codec", "generator", "control", "alignment"]
"""What a component does."""
Section = Literal["findings", "impression"]
"""The sections of a report that are learned."""
Voi = Literal["none", "window", "lut"]
Rescale = Literal["auto", "header", "minmax", "percentile"]


class Config(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    added: ClassVar[tuple[str, ...]] = ()
    """Fields that are written only where they are not the default: those of later versions, so that what was recorded
    stays equal."""

    @model_serializer(mode="wrap")
    def _as_recorded(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        record: dict[str, Any] = serialise(self)
        fields = type(self).model_fields
        left = {name for name in self.added if getattr(self, name) == fields[name].default}
        return {name: value for name, value in record.items() if name not in left}

    @classmethod
    def parse(cls, data: Any, origin: str) -> Self:
        """Validate ``data``; ConfigError names ``origin``, the first wrong field and what was expected."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            named = "" if first["loc"] else f"{cls.__name__.lower()}: "
            got = f" (got {first['input']!r:.80})" if first["loc"] and first["type"] != "extra_forbidden" else ""
            raise ConfigError(f"{origin}: {named}{first_wrong(error, cls)}{got}") from None


def first_wrong(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong with values of ``model`` in a line: the field, and what was expected of it.

    Of an unknown field, the nearest one that is there, or all of them.
    """
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown{_suggested(model, first['loc'])}"
    return f"{where}: {message}" if where and not message.startswith(where) else message


def _suggested(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    models, is_key = [model], False
    for part in place[:-1]:
        found = [one.model_fields[str(part)].annotation for one in models if str(part) in one.model_fields]
        if is_key or not found:  # a key of a dictionary, a position, or which of several models
            is_key = False
            continue
        models = [inner for annotation in found for inner in _models(annotation)]
        is_key = any(get_origin(annotation) is dict for annotation in found)
    names = list(dict.fromkeys(name for one in models for name in one.model_fields))
    near = difflib.get_close_matches(str(place[-1]), names, 1)
    return f", did you mean {near[0]}?" if near else f"; expected one of {', '.join(names)}" if names else ""


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models among a type and its arguments."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
