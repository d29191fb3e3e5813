"""The report as text: what it says in words, what it escapes, and that it needs nothing besides itself."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from typing import Any

from smooth.evaluate import page

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")


def metric(name: str, model: str, value: float | None, low: float | None = None, high: float | None = None) -> Any:
    note = "" if value is not None else "put <it> at /there"
    return {"name": name, "model": model, "value": value, "low": low, "high": high, "n": 36, "stamp": {}, "note": note}


def metrics(low: float = -0.5, high: float = -0.1) -> list[Any]:
    return [
        metric("ISTD", "base", 3.0, 2.5, 3.5) | {"stamp": {"steps": 50, "prompts": "<script>"}},
        metric("ISTD", "smooth", 2.5, 2.0, 3.0),
        metric("ISTD", "smooth - base", (low + high) / 2, low, high),
        metric("sample diversity", "base", 30.0, 29.0, 31.0),
        metric("sample diversity", "smooth", 20.0, 19.0, 21.0),
        metric("KID (EfficientNet-Lite0) x1000", "base", 500.0, 400.0, 600.0),
        metric("KID (EfficientNet-Lite0) x1000", "smooth", 550.0, 450.0, 650.0),
        metric("FID (Inception-v3)", "base", None),
        metric("FID (Inception-v3)", "smooth", None),
    ]


def rendered(found: list[Any], names: tuple[str, str] = ("A", "B")) -> str:
    return page.render(names, found, {"strips.png": PNG, "more.png": PNG}, page.Cost(100.0, 50, 2.0), "today")


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_needs_nothing_besides_itself() -> None:
    elements = Elements(rendered(metrics()))
    pictures = [attributes for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) == 2
    for picture in pictures:
        assert picture["alt"]
        assert str(picture["src"]).startswith("data:image/png;base64,")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements.found}
    assert not [attributes for _, attributes in elements.found if "href" in attributes]


def test_what_people_wrote_is_text() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    elements = Elements(rendered(metrics(), names=(hostile, "B")))
    assert hostile in elements.text
    assert "<script>" in elements.text
    assert "put <it> at /there" in elements.text
    assert all("onerror" not in attributes for _, attributes in elements.found)


def test_intervals_decide_what_is_said() -> None:
    def kinds(low: float, high: float) -> list[str]:
        by_name: dict[str, dict[str, Any]] = {}
        for one in metrics(low, high):
            by_name.setdefault(one["name"], {})[one["model"]] = one
        return [f"{kind}: {sentence.partition(':')[0]}" for kind, sentence in page.verdicts(by_name)]

    others = ["bad: Less variety", "open: No difference in quality can be told"]
    assert kinds(-0.5, -0.1) == ["good: Smoother", *others]
    assert kinds(-0.5, 0.1) == ["open: Not surely smoother", *others]
    assert kinds(0.1, 0.5) == ["bad: Less smooth", *others]


def test_variety_that_is_won_lost_or_kept() -> None:
    def said(low: float, high: float) -> tuple[str, str]:
        base, smooth = (metric("sample diversity", "base", 30.5, 30, 31), (low + high) / 2)
        found = {"sample diversity": {"base": base, "smooth": metric("sample diversity", "smooth", smooth, low, high)}}
        ((kind, sentence),) = page.verdicts(found)
        return kind, sentence

    more = "More variety: sample diversity is 110 % of the base's, and the intervals do not meet."
    assert said(33, 34) == ("good", more)
    assert said(30.9, 34)[1].startswith("Variety is kept: ")
    assert said(27, 28)[0] == "bad"


def test_arrows_point_to_the_better() -> None:
    assert page.better("ISTD") == "↓"
    assert page.better("KID (EfficientNet-Lite0) x1000") == "↓"
    assert page.better("recall (EfficientNet-Lite0)") == "↑"
    assert page.better("sample diversity") == ""


def test_the_paper_is_cited_beside_and_the_cost_is_told() -> None:
    text = Elements(rendered(metrics())).text
    assert "Smooth Diffusion, its authors" in text
    assert "0.06" in text  # GPU-hours of 2 GPUs in 100 s
    assert "0.50 a second" in text
