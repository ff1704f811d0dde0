"""What all configurations have in common."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

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
            where = ".".join(str(part) for part in first["loc"]) or cls.__name__.lower()
            got = f" (got {first['input']!r:.80})" if first["loc"] else ""
            raise ConfigError(f"{origin}: {where}: {first['msg'].removeprefix('Value error, ')}{got}") from None
