"""The parameters that the flows share, as Prefect's form shows them and its server checks them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

from smooth.overrides import preset_names

Preset = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [
                {"title": "one that comes with Smooth", "type": "string", "enum": preset_names()},
                {"title": "path of a .yaml file", "type": "string", "pattern": r"\.ya?ml$"},
            ]
        }
    ),
]
Override = Annotated[str, Field(pattern=r"^\s*[a-z]\w*(\.\w+)*\s*=", examples=["train.steps=100"])]
