"""What the registry tells of past moves of the alias `production`, though MLflow has no transaction.

A move is one record, which the version that it leads to keeps in a tag. It names the move ``after`` which it came, and
the registered model's tag names the last one, the *head*. A move is written in this order:

1. the record, on the version
2. the alias ``production``: the commit point
3. the head
4. the alias ``previous``

So wherever it is broken off, the state is the old one (a record that follows the head, on a version without the alias)
or the new one (the same, on the version with the alias), and what is missing can be derived. The alias on a version
whose last record is neither the head nor follows it was moved by hand.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from smooth.promotion import PREVIOUS, PRODUCTION, PromotionError

MOST_RECORDS = 20
"""that a version keeps"""


Kind = Literal["promotion", "rollback"]


@dataclass(frozen=True)
class Record:
    """One move of the alias."""

    id: str
    kind: Kind
    after: str
    """id of the move before; empty for the first"""
    previous: str | None
    """version that carried the alias"""
    who: str
    when: str
    """UTC"""
    why: str
    approved: str = ""
    """by whom, where a person was asked"""

    def text(self) -> str:
        """For people."""
        what = "promoted" if self.kind == "promotion" else "rolled back to"
        approved = f", approved by {self.approved}" if self.approved else ""
        return f"{what} {self.when} by {self.who}{approved}" + (f": {self.why}" if self.why else "")


History = tuple[Record, ...]
"""of one version, oldest first"""


def to_tag(history: History) -> str:
    """The last records as JSON."""
    return json.dumps([asdict(record) for record in history[-MOST_RECORDS:]])


def from_tag(version: str, text: str) -> History:
    """Read what :func:`to_tag` wrote.

    Raises:
        PromotionError: it is something else.
    """
    try:
        return tuple(Record(**values) for values in json.loads(text))
    except (ValueError, TypeError) as error:
        raise PromotionError(
            f"version {version}: its tag of promotions is not what this project wrote ({error}); delete the tag"
        ) from error


@dataclass(frozen=True)
class Books:
    """One reading of a registered model."""

    name: str
    aliases: dict[str, str]
    """alias -> version"""
    head: str
    """id of the last move whose end was written; empty where there is none"""
    histories: dict[str, History]
    """of all versions"""

    @property
    def production(self) -> str | None:
        """The version that carries the alias."""
        return self.aliases.get(PRODUCTION)

    @property
    def move(self) -> Record | None:
        """The move that led the alias to where it is; None where it was moved by hand, or is nowhere."""
        history = self.histories.get(self.production or "", ())
        if history and self.head in (history[-1].id, history[-1].after):
            return history[-1]
        return None

    @property
    def is_by_hand(self) -> bool:
        """Whether the alias is not where the last move led it."""
        return self.move is None and (self.production is not None or self.headed is not None)

    @property
    def headed(self) -> str | None:
        """The version that the last move led to, wherever the alias is now."""
        if self.move is not None:
            return self.production
        found = (version for version, history in self.histories.items() if self.head in [each.id for each in history])
        return next(found, None)

    @property
    def previous(self) -> str | None:
        """What a rollback goes back to. After a rollback there is none: a second one would be a guess."""
        if self.move is None:
            return self.headed
        before = self.move.previous if self.move.kind == "promotion" else None
        return before if before in self.histories else None

    @property
    def noted_previous(self) -> str | None:
        """What the alias `previous` should point to; it stays as it is where `production` was moved by hand."""
        return self.aliases.get(PREVIOUS) if self.move is None else self.previous

    @property
    def broken_off(self) -> list[str]:
        """Versions with a record of a move that never reached its commit point."""
        return [
            version
            for version, history in self.histories.items()
            if history and version != self.production and history[-1].after == self.head != history[-1].id
        ]

    def promotion(self, version: str) -> Record | None:
        """The last promotion of a version that was carried out."""
        history = self.histories.get(version, ())
        history = history[:-1] if version in self.broken_off else history
        return next((record for record in reversed(history) if record.kind == "promotion"), None)

    @property
    def once_in_production(self) -> list[str]:
        """Versions that passed the gate at some time, newest first."""
        return sorted((each for each in self.histories if self.promotion(each)), key=int, reverse=True)

    def unfinished(self) -> list[str]:
        """What the next promotion or rollback mends, in words."""
        found = [f"version {each}: the move to it was broken off before it took effect" for each in self.broken_off]
        if self.move is not None and self.head != self.move.id:
            found.append(f"the move to {self.production} took effect and was broken off before its end was written")
        if self.aliases.get(PREVIOUS) != self.noted_previous:
            found.append(f"alias {PREVIOUS} is on {self.aliases.get(PREVIOUS)} and belongs on {self.noted_previous}")
        return found
