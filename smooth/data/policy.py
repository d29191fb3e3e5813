"""Which rows of a URL list may be fetched, decided from the list's own columns, before any packet.

Tables have LAION's column names here: :mod:`smooth.data.columns` knows what other lists call them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from smooth import store
from smooth.config import ConfigError, IngestConfig
from smooth.data.columns import CAPTION, URL

NOT_HOST = r"^[^@]*@|[:?#].*$"  # of what stands between "//" and the next "/"
PARENTS = 4  # a host is looked up with so many domains above it


@dataclass(frozen=True)
class Rule:
    """A reason to refuse a row."""

    name: str
    """the config's knob, under which refused rows are counted"""
    columns: tuple[str, ...]
    """what it looks at"""
    passes: Callable[[pa.Table], Any]
    """table => boolean array, one value a row, no nulls: what can't be judged isn't fetched"""


def threshold(name: str, columns: tuple[str, ...], limit: float, *, lower: bool) -> Rule:
    """Rows pass where all ``columns`` are at least (``lower``) or at most ``limit``."""
    compare = pc.greater_equal if lower else pc.less_equal

    def passes(table: pa.Table) -> Any:
        return reduce(pc.and_, (pc.fill_null(compare(table[column], limit), False) for column in columns))

    return Rule(name, columns, passes)


def aspect(name: str, limit: float) -> Rule:
    """Rows pass where the longer side is at most ``limit`` times the shorter."""
    columns = ("WIDTH", "HEIGHT")

    def passes(table: pa.Table) -> Any:
        sides = [pc.cast(table[column], pa.float64()) for column in columns]
        longer, shorter = (find(*sides, skip_nulls=False) for find in (pc.max_element_wise, pc.min_element_wise))
        return pc.fill_null(pc.less_equal(longer, pc.multiply(shorter, limit)), False)

    return Rule(name, columns, passes)


def length(name: str, column: str, least: int, most: int | None = None) -> Rule:
    """Rows pass where the text, without white space around it, has from ``least`` to ``most`` characters."""

    def passes(table: pa.Table) -> Any:
        found = pc.utf8_length(pc.utf8_trim_whitespace(table[column]))
        fits = pc.greater_equal(found, least)
        return pc.fill_null(fits if most is None else pc.and_(fits, pc.less_equal(found, most)), False)

    return Rule(name, (column,), passes)


def not_listed(name: str, column: str, values: list[str]) -> Rule:
    """Rows pass where the column's value, as text, is not among ``values``."""
    listed = pa.array(values, pa.string())
    return Rule(
        name, (column,), lambda table: pc.invert(pc.is_in(pc.cast(table[column], pa.string()), value_set=listed))
    )


def hosts(urls: Any) -> Any:
    """The hosts of a column of URLs, in lower case; an empty text where there is none."""
    # Splitting is several times faster than a regular expression for the host.
    parts = pc.list_slice(pc.split_pattern(urls, "/", max_splits=3), 2, 3)
    host = pc.utf8_lower(pc.replace_substring_regex(pc.binary_join(parts, ""), NOT_HOST, ""))
    return pc.utf8_rtrim(host, ".")


def other_domain(name: str, values: list[str]) -> Rule:
    """Rows pass where neither the URL's host nor a domain above it is among ``values``."""
    domains = pa.array([value.lower().strip(".") for value in values], pa.string())

    def passes(table: pa.Table) -> Any:
        host = hosts(table[URL])
        blocked = pc.is_in(host, value_set=domains)
        for _ in range(PARENTS):
            host = pc.replace_substring_regex(host, r"^[^.]*\.", "")
            blocked = pc.or_(blocked, pc.is_in(host, value_set=domains))
        return pc.invert(blocked)

    return Rule(name, (URL,), passes)


def rules(config: IngestConfig) -> list[Rule]:
    """The rules that the config switches on, in the order in which they refuse.

    Raises:
        ConfigError: a file of blocked values is not there.
    """
    found = [length("no_url", URL, 1), length("no_caption", CAPTION, 1)]
    if config.min_caption > 1:
        found.append(length("min_caption", CAPTION, config.min_caption))
    if config.max_caption is not None:
        found.append(length("max_caption", CAPTION, 0, config.max_caption))
    if config.blocked_domains is not None:
        found.append(other_domain("blocked_domains", _lines("blocked_domains", config.blocked_domains)))
    if config.blocked_hashes is not None:
        found.append(not_listed("blocked_hashes", "hash", _lines("blocked_hashes", config.blocked_hashes)))
    if config.min_size:
        found.append(threshold("min_size", ("WIDTH", "HEIGHT"), config.min_size, lower=True))
    if config.max_aspect is not None:
        found.append(aspect("max_aspect", config.max_aspect))
    scores = (
        ("max_punsafe", "punsafe", False),
        ("max_pwatermark", "pwatermark", False),
        ("min_aesthetic", "AESTHETIC_SCORE", True),
        ("min_similarity", "similarity", True),
    )
    for name, column, lower in scores:
        if (limit := getattr(config, name)) is not None:
            found.append(threshold(name, (column,), limit, lower=lower))
    return found


def check_columns(columns: Sequence[str], found: Sequence[Rule]) -> None:
    """Refuse a list that lacks a column some rule needs.

    Raises:
        ValueError: names the missing columns, the rules that need them and the columns seen.
    """
    missing = {rule.name: [column for column in rule.columns if column not in columns] for rule in found}
    missing = {name: lacking for name, lacking in missing.items() if lacking}
    if missing:
        needed = "; ".join(f"{', '.join(lacking)} (for {name})" for name, lacking in missing.items())
        raise ValueError(
            f"the URL list lacks column {needed}. It has: {', '.join(columns)}. "
            'Name the column as in ingest.columns={"punsafe": "NAME"}, or set the threshold to null (min_size: 0).'
        )


def apply(table: pa.Table, found: Sequence[Rule]) -> tuple[pa.Table, Counter[str]]:
    """Split a table: the rows that may be fetched, and how many each rule refused.

    Every row is either kept or counted under exactly one rule, the first that refuses it.
    """
    refused: Counter[str] = Counter()
    passing, left = None, table.num_rows
    for rule in found:  # masks are cheap; the rows are copied once, at the end
        passes = rule.passes(table)
        passing = passes if passing is None else pc.and_(passing, passes)
        still = pc.sum(passing).as_py() or 0
        if left > still:
            refused[rule.name] = left - still
        left = still
    return table if left == table.num_rows else table.filter(passing), refused


def _lines(key: str, path: str) -> list[str]:
    if not store.exists(path):
        raise ConfigError(f"ingest.{key}={path}: no such file; give a text file with one value a line")
    lines = (line.strip() for line in store.read_bytes(path).decode().splitlines())
    return [line for line in lines if line and not line.startswith("#")]
