from __future__ import annotations

import pytest

from smooth.data.columns import recognise

SCORES = ["similarity", "punsafe", "pwatermark", "AESTHETIC_SCORE", "hash"]
LISTS = {
    "LAION-5B": (
        ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"],
        {"URL": "URL", "TEXT": "TEXT", "WIDTH": "WIDTH", "HEIGHT": "HEIGHT", "similarity": "similarity"},
    ),
    "LAION-Aesthetics": (
        ["URL", "TEXT", "WIDTH", "HEIGHT", *SCORES],
        {name: name for name in ["URL", "TEXT", "WIDTH", "HEIGHT", *SCORES]},
    ),
    "Re-LAION": (
        ["key", "url", "caption", "width", "height", "similarity", "punsafe", "pwatermark", "hash"],
        {
            "URL": "url",
            "TEXT": "caption",
            "WIDTH": "width",
            "HEIGHT": "height",
            "similarity": "similarity",
            "punsafe": "punsafe",
            "pwatermark": "pwatermark",
            "hash": "hash",
        },
    ),
    "COYO-700M": (
        [
            *("id", "url", "text", "width", "height", "image_phash", "text_length", "num_faces"),
            *("clip_similarity_vitb32", "clip_similarity_vitl14", "nsfw_score_opennsfw2", "nsfw_score_gantman"),
            *("watermark_score", "aesthetic_score_laion_v2"),
        ],
        {
            "URL": "url",
            "TEXT": "text",
            "WIDTH": "width",
            "HEIGHT": "height",
            "similarity": "clip_similarity_vitb32",
            "punsafe": "nsfw_score_opennsfw2",
            "pwatermark": "watermark_score",
            "AESTHETIC_SCORE": "aesthetic_score_laion_v2",
            "hash": "image_phash",
        },
    ),
    "plain": (["url", "caption"], {"URL": "url", "TEXT": "caption"}),
}


@pytest.mark.parametrize("name", LISTS)
def test_known_lists(name: str) -> None:
    listed, expected = LISTS[name]
    assert recognise(listed, {}) == expected


def test_a_named_column_goes_before_a_known_one() -> None:
    assert recognise(["url", "text", "link"], {"URL": "link"}) == {"URL": "link", "TEXT": "text"}


@pytest.mark.parametrize(
    ("listed", "named", "message"),
    [
        (
            ["link", "caption"],
            {},
            r"known as URL\. The list has: link, caption\. .*columns=\{\"URL\": \"NAME\"\}",
        ),
        (["a", "b"], {}, r"known as URL or TEXT"),
        (["url", "text"], {"URL": "link"}, r"points to link, which the list lacks\. The list has: url, text"),
        (["url", "text"], {"ADDRESS": "url"}, r"names ADDRESS; it can name URL, TEXT, WIDTH"),
    ],
)
def test_what_can_not_be_told_is_asked_for(listed: list[str], named: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recognise(listed, named)
