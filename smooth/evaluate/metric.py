"""A metric is a value with its interval, its n and a protocol stamp; two values compare only where stamps agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


class StampError(ValueError):
    """Two values were measured under different protocols, so their difference means nothing."""


@dataclass(frozen=True)
class Metric:
    """One measured value.

    ``low`` and ``high`` bound the 95 % interval (None where there is none), ``n`` counts what was sampled,
    ``stamp`` holds all that the value depends on besides the model, ``note`` says why a value is missing.
    """

    name: str
    model: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    stamp: dict[str, str | int | float] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def compare(self, other: Metric) -> float:
        """This value minus the other.

        Raises:
            StampError: another metric, another protocol, or a value that is missing.
        """
        if self.name != other.name:
            raise StampError(f"{self.name} and {other.name} are different metrics")
        different = sorted(
            key for key in self.stamp.keys() | other.stamp.keys() if self.stamp.get(key) != other.stamp.get(key)
        )
        if different:
            pairs = ", ".join(f"{key}: {self.stamp.get(key)} against {other.stamp.get(key)}" for key in different)
            raise StampError(
                f"{self.name} of {self.model} and {other.model} do not compare ({pairs}); "
                "measure both with one protocol"
            )
        if self.value is None or other.value is None:
            raise StampError(f"{self.name}: no value for {self.model if self.value is None else other.model}")
        return self.value - other.value

    def text(self) -> str:
        """The value with its interval, for people."""
        if self.value is None:
            return f"unavailable: {self.note}"
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}"
