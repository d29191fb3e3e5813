"""What carries the aliases, and whether what carries `production` passed the gate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smooth.promotion import CANDIDATE
from smooth.promotion.records import Books, Record


@dataclass(frozen=True)
class Status:
    """Of one registered model."""

    model: str
    production: str | None
    previous: str | None
    """what a rollback goes back to"""
    candidate: str | None
    passed_gate: bool
    """whether the flow put `production` where it is, and its version passed the gate"""
    promotion: Record | None
    """of the version in production, the last one"""
    rollback: Record | None
    """the one that put it back there, where its last move was one"""
    says: str
    """the same in a sentence"""
    unfinished: list[str]
    """what the next promotion or rollback mends"""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        rows = [("production", self.production), ("previous", self.previous), (CANDIDATE, self.candidate)]
        told = [f"{name:<11} {'none' if number is None else f'version {number}'}" for name, number in rows]
        unfinished = [f"unfinished: {each}; the next promotion or rollback mends it" for each in self.unfinished]
        return [self.model, *(f"  {line}" for line in told), self.says, *unfinished]


def of(books: Books) -> Status:
    """Read the books; they are left as they are, since a reader may meet a promotion under way."""
    number, move = books.production, books.move
    promotion = None if number is None or books.is_by_hand else books.promotion(number)
    return Status(
        model=books.name,
        production=number,
        previous=books.previous,
        candidate=books.aliases.get(CANDIDATE),
        passed_gate=promotion is not None,
        promotion=promotion,
        rollback=move if move is not None and move.kind == "rollback" else None,
        says=_sentence(books, promotion),
        unfinished=books.unfinished(),
    )


def _sentence(books: Books, promotion: Record | None) -> str:
    number, move = books.production, books.move
    if books.is_by_hand:
        led = "" if books.headed is None else f" ({books.name} was last put on version {books.headed})"
        where = "was taken away" if number is None else f"is on version {number}"
        return (
            f"production {where} by hand, not by a promotion{led}: `make promote VERSION={number or books.headed}` "
            "asks the gate" + ("" if books.headed is None else ", `make rollback` puts it back")
        )
    if number is None or move is None:
        return "nothing is in production: `make promote VERSION=candidate` asks the gate"
    passed = "never passed the gate" if promotion is None else f"passed the gate: {promotion.text()}"
    if move.kind == "rollback":
        return f"version {number} was {move.text()}; it {passed}"
    return f"version {number} {passed}"
