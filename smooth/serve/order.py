"""What a client asks for, checked key by key: a refusal says what is wrong, where, and what can be."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smooth.edit import GUIDANCE, LARGEST_SEED, LONGEST_PROMPT, STEPS
from smooth.overrides import nearest

MOST_BODY = 2**16  # bytes; holds the longest prompts with every letter escaped
SHOWN = 40  # letters of a wrong value in a message

Text = Annotated[str, Field(max_length=LONGEST_PROMPT)]


class OrderError(ValueError):
    """A request that is not painted: the HTTP status, and what to tell the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[OrderError], tuple[int, str]]:
        """It goes from a painter's process to the front's."""
        return OrderError, (self.status, str(self))


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most."""

    steps: int = 100
    size: int | None = None
    """side in pixels; the model's own if None"""


class Order(BaseModel):
    """One picture; what is left out is as in ``smooth generate``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Text
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    steps: Annotated[int, Field(ge=1)] = STEPS
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = GUIDANCE
    negative: Text = ""
    size: Annotated[int, Field(ge=1)] | None = None

    @property
    def group(self) -> Hashable:
        """Equal for orders that can share a batch."""
        return self.steps, self.guidance, self.size


def read_order(body: bytes, limits: Limits) -> Order:
    """The order of a request's body, JSON in UTF-8.

    Raises:
        OrderError: 400 for what is no JSON object, 422 for what can't be.
    """
    try:
        order = Order.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    if order.steps > limits.steps:
        raise OrderError(422, f"steps={order.steps}: this server takes 1 to {limits.steps}")
    if limits.size is not None and order.size is not None and order.size > limits.size:
        raise OrderError(422, f"size={order.size}: this server takes at most {limits.size} pixels")
    return order


def _refusal(error: ValidationError) -> OrderError:
    details = error.errors(include_url=False, include_context=False)
    if details[0]["type"] in ("json_invalid", "model_type"):
        return OrderError(400, f'the body is no JSON object such as {{"prompt": "a red heart"}}: {details[0]["msg"]}')
    return OrderError(
        422, "; ".join(_told(str(each["loc"][0]), each["type"], each["msg"], each["input"]) for each in details)
    )


def _told(key: str, kind: str, message: str, given: Any) -> str:
    name = repr(key)[1:-1][:SHOWN]  # a client's own key may hold anything
    if kind == "extra_forbidden":
        return f"unknown key {name}{nearest(name, list(Order.model_fields))}"
    if kind == "missing":
        return f"{name} is missing"
    shown = repr(given)
    return f"{name}={shown if len(shown) <= SHOWN else shown[:SHOWN] + '...'}: {message[:1].lower()}{message[1:]}"
