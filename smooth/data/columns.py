"""The columns of URL lists: LAION-5B, Re-LAION, LAION-Aesthetics, COYO-700M and plain lists, under LAION's names."""

from __future__ import annotations

from collections.abc import Mapping

URL, CAPTION = "URL", "TEXT"
# LAION's name => how lists spell it, in lower case; the first that a list has is taken.
SPELLINGS: dict[str, tuple[str, ...]] = {
    URL: ("url",),
    CAPTION: ("text", "caption"),
    "WIDTH": ("width",),
    "HEIGHT": ("height",),
    "similarity": ("similarity", "clip_similarity_vitb32"),  # LAION's is of CLIP ViT-B/32
    "punsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "pwatermark": ("pwatermark", "watermark_score"),
    "AESTHETIC_SCORE": ("aesthetic_score", "aesthetic", "aesthetic_score_laion_v2"),
    "hash": ("hash", "image_phash"),
}
REQUIRED = (URL, CAPTION)


def recognise(listed: list[str], named: Mapping[str, str]) -> dict[str, str]:
    """Which column of a list stands for which of LAION's: {LAION's name: the list's name}.

    ``listed`` are the list's columns; ``named`` (``ingest.columns``) is what the user says of them, in the same form.

    Raises:
        ValueError: a named column is not there, or URL or caption can't be told; says which columns were seen.
    """
    seen = f"The list has: {', '.join(listed)}"
    if unknown := [name for name in named if name not in SPELLINGS]:
        raise ValueError(f"ingest.columns names {', '.join(unknown)}; it can name {', '.join(SPELLINGS)}")
    if absent := [column for column in named.values() if column not in listed]:
        raise ValueError(f"ingest.columns points to {', '.join(absent)}, which the list lacks. {seen}")
    spelled = {column.lower(): column for column in reversed(listed)}
    found = dict(named)
    for name, spellings in SPELLINGS.items():
        match = next((spelled[spelling] for spelling in spellings if spelling in spelled), None)
        if name not in found and match is not None:
            found[name] = match
    if missing := [name for name in REQUIRED if name not in found]:
        example = ", ".join(f'"{name}": "NAME"' for name in missing)
        raise ValueError(
            f"no column of the list is known as {' or '.join(missing)}. {seen}. "
            f"Say which it is, as in ingest.columns={{{example}}}"
        )
    return {name: found[name] for name in SPELLINGS if name in found}
