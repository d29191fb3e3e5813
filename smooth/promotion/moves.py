"""The moves of the alias, write by write. The order is :mod:`smooth.promotion.records`'s."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from smooth.promotion import PREVIOUS, PromotionError
from smooth.promotion.records import Books, Kind, Record
from smooth.promotion.registry import Registry


class MovedError(PromotionError):
    """Production is not what it was when a move was asked for."""


def check_unmoved(books: Books, production: str | None) -> None:
    """Refuse where production has moved since a move was asked for.

    Raises:
        MovedError: it has.
    """
    if books.production != production:
        raise MovedError(
            f"production moved from {production or 'nothing'} to {books.production or 'nothing'} while this waited: "
            "look, and ask again"
        )


def promote(registry: Registry, books: Books, version: str, *, gate: str, who: str, why: str, approved: str) -> Record:
    """Make ``version`` the production model; ``gate`` is the table of what it passed."""
    books = mend(registry, books)
    record = _record("promotion", books, version, who, why, approved)
    registry.write_gate(version, gate)
    _move(registry, books, version, record)
    return record


def roll_back(registry: Registry, books: Books, version: str, *, who: str, why: str) -> Record:
    """Make ``version`` the production model again."""
    books = mend(registry, books)
    record = _record("rollback", books, version, who, why, "")
    _move(registry, books, version, record)
    return record


def mend(registry: Registry, books: Books) -> Books:
    """Take back what a move that was broken off left, or write what it still had to; return the books after it.

    Safe to be broken off and done again: each write is one that the books call for.
    """
    if not books.unfinished():
        return books
    for version in books.broken_off:
        history = books.histories[version][:-1]
        if history:
            registry.write_history(version, history)
        else:
            registry.erase_history(version)
    if books.move is not None and books.head != books.move.id:
        registry.write_head(books.move.id)
    if books.aliases.get(PREVIOUS) != books.noted_previous:
        registry.point_previous(books.noted_previous)
    return registry.books()


def _record(kind: Kind, books: Books, version: str, who: str, why: str, approved: str) -> Record:
    return Record(
        id=secrets.token_hex(8),
        kind=kind,
        after=books.head,
        # A version that a hand put there may be promoted: before it was what the last move led to.
        previous=next((each for each in (books.production, books.headed) if each not in (None, version)), None),
        who=who,
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        why=why,
        approved=approved,
    )


def _move(registry: Registry, books: Books, version: str, record: Record) -> None:
    registry.write_history(version, (*books.histories[version], record))
    registry.point_production(version)
    registry.write_head(record.id)
    previous = record.previous if record.kind == "promotion" else None
    if previous is not None or PREVIOUS in books.aliases:
        registry.point_previous(previous)
