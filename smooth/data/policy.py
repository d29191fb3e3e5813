"""Which rows of a URL list may be fetched, decided from the list's own columns, before any packet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from smooth.config import IngestConfig

URL, CAPTION = "URL", "TEXT"
# LAION's columns that travel with a picture, where the list has them.
EXTRA = ("WIDTH", "HEIGHT", "similarity", "punsafe", "pwatermark", "AESTHETIC_SCORE", "hash")


@dataclass(frozen=True)
class Rule:
    """Rows pass where all ``columns`` are at least (``lower``) or at most ``threshold``.

    ``name`` is the config knob. A row without a value fails: what can't be judged isn't fetched.
    """

    name: str
    columns: tuple[str, ...]
    threshold: float
    lower: bool = True

    def passes(self, table: pa.Table) -> Any:
        """Boolean array, one value a row of ``table``, no nulls."""
        compare = pc.greater_equal if self.lower else pc.less_equal
        masks = [pc.fill_null(compare(table[column], self.threshold), False) for column in self.columns]
        verdict = masks[0]
        for mask in masks[1:]:
            verdict = pc.and_(verdict, mask)
        return verdict


@dataclass(frozen=True)
class NotEmpty:
    """Rows pass where the text column holds something beside white space."""

    name: str
    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column that is looked at."""
        return (self.column,)

    def passes(self, table: pa.Table) -> Any:
        """Boolean array, one value a row of ``table``, no nulls."""
        return pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table[self.column])), 0), False)


def rules(config: IngestConfig) -> list[Rule | NotEmpty]:
    """The rules that the config switches on, in the order in which they refuse."""
    found: list[Rule | NotEmpty] = [NotEmpty("no_url", URL), NotEmpty("no_caption", CAPTION)]
    if config.min_size:
        found.append(Rule("min_size", ("WIDTH", "HEIGHT"), config.min_size))
    if config.max_punsafe is not None:
        found.append(Rule("max_punsafe", ("punsafe",), config.max_punsafe, lower=False))
    if config.max_pwatermark is not None:
        found.append(Rule("max_pwatermark", ("pwatermark",), config.max_pwatermark, lower=False))
    if config.min_aesthetic is not None:
        found.append(Rule("min_aesthetic", ("AESTHETIC_SCORE",), config.min_aesthetic))
    if config.min_similarity is not None:
        found.append(Rule("min_similarity", ("similarity",), config.min_similarity))
    return found


def check_columns(columns: list[str], config: IngestConfig) -> None:
    """Refuse a list that lacks a column some rule needs.

    Raises:
        ValueError: names the missing columns, the rules that need them and the columns seen.
    """
    missing = {rule.name: [c for c in rule.columns if c not in columns] for rule in rules(config)}
    missing = {name: lacking for name, lacking in missing.items() if lacking}
    if missing:
        needed = "; ".join(f"{', '.join(lacking)} (for {name})" for name, lacking in missing.items())
        raise ValueError(
            f"the URL list lacks column {needed}. It has: {', '.join(columns)}. "
            "Rename the columns as LAION does, or set the ingest threshold to null (min_size: 0)."
        )


def apply(table: pa.Table, config: IngestConfig) -> tuple[pa.Table, Counter[str]]:
    """Split a table: the rows that may be fetched, and how many each rule refused.

    Every row is either kept or counted under exactly one rule, the first that refuses it.
    """
    refused: Counter[str] = Counter()
    for rule in rules(config):
        before = table.num_rows
        table = table.filter(rule.passes(table))
        if before > table.num_rows:
            refused[rule.name] = before - table.num_rows
    return table, refused


def fetched_columns(columns: list[str]) -> list[str]:
    """The list's columns that go on with the allowed rows."""
    return [URL, CAPTION, *(column for column in EXTRA if column in columns)]
