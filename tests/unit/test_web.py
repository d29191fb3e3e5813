from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smooth.config import DemoWebConfig
from smooth.data import causes, openmoji, web

CONFIG = DemoWebConfig(pictures=40, fault_share=0.5)


@pytest.fixture(scope="module")
def served() -> Iterator[web.Web]:
    with web.serve(CONFIG) as running:
        yield running


def get(url: str, timeout: float = 10) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as response:
        data: bytes = response.read()
        return data


def url_of(served: web.Web, fault: str | None, extension: str = "") -> str:
    return served.url + next(
        row.path for row in web.plan(CONFIG) if row.fault == fault and row.path.endswith(extension)
    )


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_good_pictures_are_what_the_list_says(served: web.Web, extension: str):
    row = next(row for row in web.plan(CONFIG) if row.fault is None and row.path.endswith(extension))
    data = get(served.url + row.path)
    picture = Image.open(io.BytesIO(data))
    assert picture.format == web.FORMATS[extension][0]
    assert picture.size == (row.width, row.height)
    assert causes.defect(data) is None
    drawing = next(d for d in openmoji.drawings() if d.caption == row.caption)
    expected = openmoji.render(drawing, row.width, openmoji.Style.draw(drawing.key, 0))
    error = np.abs(np.asarray(picture.convert("RGB"), np.float32) - expected).mean()
    assert error == 0 if extension == "png" else error < 6


@pytest.mark.parametrize(("fault", "status"), [("http_404", 404), ("http_500", 500)])
def test_error_statuses(served: web.Web, fault: str, status: int):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url_of(served, fault))
    assert caught.value.code == status
    caught.value.close()


@pytest.mark.parametrize("fault", ["not_an_image", "truncated", "empty"])
def test_bad_bodies_are_told_apart(served: web.Web, fault: str):
    assert causes.defect(get(url_of(served, fault))) == fault


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_every_format_shows_that_it_was_cut(served: web.Web, extension: str):
    path = next(row.path for row in web.plan(CONFIG) if row.fault is None and row.path.endswith(extension))
    assert causes.defect(get(served.url + path.replace(web.GOOD, "truncated"))) == "truncated"


def test_cut_connection_is_an_incomplete_read(served: web.Web):
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(url_of(served, "cut_connection"))
    assert causes.cause_of(str(caught.value)) == "cut_connection"


def test_too_small_is_smaller_than_its_row_claims(served: web.Web):
    assert Image.open(io.BytesIO(get(url_of(served, "too_small")))).size == (web.TINY, web.TINY)


def test_a_hanging_request_outlasts_the_client_and_ends_with_the_server():
    with web.serve(CONFIG) as running:
        with pytest.raises(TimeoutError):
            get(url_of(running, "timeout"), timeout=0.3)
        before = time.monotonic()
    assert time.monotonic() - before < 30


@pytest.mark.parametrize("path", ["/", "/picture/nonsense", "/picture/1F600-64.exe", "/picture/FFFF-64.png", "/a/b/c"])
def test_unknown_paths_are_not_found(served: web.Web, path: str):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(served.url + path)
    assert caught.value.code == 404
    caught.value.close()


def test_the_list_has_laions_columns_and_all_rows(served: web.Web, tmp_path: Path):
    served.write_list(str(tmp_path / "list.parquet"))
    table = pq.read_table(tmp_path / "list.parquet")
    assert ",".join(table.column_names) == ("URL,TEXT,WIDTH,HEIGHT,similarity,punsafe,pwatermark,AESTHETIC_SCORE,hash")
    assert table.num_rows == 80
    assert sum(served.planted.values()) == 40
    assert set(served.planted) == set(web.FAULTS)


def test_the_plan_is_a_function_of_the_seed():
    assert web.plan(CONFIG) == web.plan(CONFIG)
    assert web.plan(CONFIG) != web.plan(CONFIG.model_copy(update={"seed": 1}))


def test_all_drawings_are_listed_by_default():
    good = [row for row in web.plan(DemoWebConfig()) if row.fault is None]
    assert len(good) == len(openmoji.drawings())
    assert {row.caption for row in good} == {drawing.caption for drawing in openmoji.drawings()}
