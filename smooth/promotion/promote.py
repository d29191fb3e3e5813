"""Promotion and rollback as a flow takes them: what is asked for, what the gate says, what is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smooth.promotion import PromotionError, evidence, gate, moves
from smooth.promotion.drawing import draw
from smooth.promotion.gate import Line, Margins
from smooth.promotion.records import Books, Record
from smooth.promotion.registry import Registry


@dataclass(frozen=True)
class Asked:
    """A promotion or rollback, with what was production when it was asked for."""

    registry: Registry
    version: str
    production: str | None
    is_done: bool
    """the version is production already, and the flow put it there"""


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a version."""

    version: str
    against: str
    lines: list[Line]
    pictures: Mapping[str, bytes]

    @property
    def table(self) -> str:
        """Markdown."""
        return gate.table(self.lines)


def ask(model: str, version: str) -> Asked:
    """Find the version to promote, a number or an alias. The alias may move on; the number is meant from here on.

    Raises:
        PromotionError: no such model or version.
    """
    registry = Registry(model)
    books = registry.books()
    number = find(books, version)
    return Asked(registry, number, books.production, books.production == number and books.move is not None)


def ask_back(model: str, version: str | None) -> Asked:
    """Find the version to roll back to: `previous`, or one that passed the gate at some time.

    Raises:
        PromotionError: there is none.
    """
    registry = Registry(model)
    books = registry.books()
    if version is None:
        number = books.previous
        if number is None:
            raise PromotionError(_no_way_back(books))
    else:
        number = find(books, version)
        if books.promotion(number) is None:
            raise PromotionError(
                f"version {number} of {model} was never promoted, so there is nothing to go back to; promote it"
            )
    return Asked(registry, number, books.production, books.production == number and books.move is not None)


def find(books: Books, version: str) -> str:
    """The number of a version that is named by number or alias.

    Raises:
        PromotionError: there is no such version.
    """
    number = books.aliases.get(version, version)
    if number not in books.histories:
        known = ", ".join(sorted(books.histories, key=int, reverse=True)[:10]) or "none"
        aliases = ", ".join(f"{alias} ({each})" for alias, each in sorted(books.aliases.items())) or "none"
        raise PromotionError(
            f"{books.name} has no version or alias {version!r}; newest versions: {known}; aliases: {aliases}"
        )
    return number


def judge(asked: Asked, margins: Margins) -> Verdict:
    """Judge the version against production, or against its own base model where there is none.

    One that a hand made production is judged against what was production before.

    Raises:
        MovedError: production has moved since it was asked for.
    """
    registry, books = asked.registry, asked.registry.books()
    moves.check_unmoved(books, asked.production)
    candidate = evidence.read(registry, asked.version, pictures=True)
    standing = next((each for each in (books.production, books.headed) if each not in (None, asked.version)), None)
    reference = candidate.base if standing is None else evidence.read(registry, standing).measured
    drawn = draw(registry, asked.version)
    pictures = dict(candidate.pictures) | ({} if drawn.picture is None else {"drawn.png": drawn.picture})
    return Verdict(asked.version, reference.name, gate.judge(candidate, reference, margins, drawn), pictures)


def commit(asked: Asked, verdict: Verdict, *, who: str, why: str, approved: str = "") -> Record:
    """Make the version production.

    Raises:
        MovedError: production has moved since it was asked for.
        GateError: a line failed.
    """
    gate.check(verdict.lines)
    books = asked.registry.books()
    moves.check_unmoved(books, asked.production)
    return moves.promote(asked.registry, books, asked.version, gate=verdict.table, who=who, why=why, approved=approved)


def check_loads(asked: Asked) -> bytes:
    """A picture of the version that production is to go back to: no gate, but it must load.

    Raises:
        PromotionError: it does not.
    """
    drawn = draw(asked.registry, asked.version)
    if drawn.picture is None:
        raise PromotionError(
            f"version {asked.version} does not load, nothing was changed: {drawn.words}; mend it, or name another "
            "version that was in production"
        )
    return drawn.picture


def commit_back(asked: Asked, *, who: str, why: str) -> Record:
    """Make the version production again.

    Raises:
        MovedError: production has moved since it was asked for.
    """
    books = asked.registry.books()
    moves.check_unmoved(books, asked.production)
    return moves.roll_back(asked.registry, books, asked.version, who=who, why=why)


def mend(model: str) -> list[str]:
    """Finish what moves that were broken off left to do; return it in words."""
    registry = Registry(model)
    books = registry.books()
    moves.mend(registry, books)
    return books.unfinished()


def _no_way_back(books: Books) -> str:
    if books.production is None:
        return f"nothing of {books.name} is in production, so there is nothing to roll back; promote a version"
    others = [each for each in books.once_in_production if each != books.production]
    named = f"name one that was in production: {', '.join(others)}" if others else "no other version ever was"
    if books.move is not None and books.move.kind == "rollback":
        return (
            f"version {books.production} was {books.move.text()}; a second rollback would go on to what nobody named: "
            + named
        )
    return f"nothing was in production before version {books.production}: {named}"
