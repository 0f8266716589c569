"""What the parts of pool.yaml have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from moorage.configs.problems import refuse_unknown


class Section(BaseModel):
    """Frozen and strictly typed; a key that is not known is refused by name, with the one that may have been meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    where: ClassVar[str]
    """What a refusal calls this part of the file."""

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            refuse_unknown(value, cls, cls.where)
        return value
