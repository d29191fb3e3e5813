"""The studio in headless Chromium, used as people use it: each tab, bad files, two people at once.

``SMOOTH_STUDIO_SCREENSHOTS=FOLDER`` makes the README's pictures meanwhile, of ``SMOOTH_STUDIO_LORA`` if that is given.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from infra.local import http
from smooth.cli import app
from smooth.edit import generate, media
from smooth.edit.model import EditModel, open_model
from tests.evaluated import write_adapter

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("SMOOTH_STUDIO_SCREENSHOTS")
STEPS, NULL_TEXT_STEPS = (30, 10) if SCREENSHOTS else (4, 2)
PATIENCE = 120_000  # milliseconds, on a machine that does other things, too
ADAPTER = "smooth-lora"
ROOM = {"width": 900, "height": 800}
PHONE = {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the studio is started in, with a LoRA and a picture that somebody has."""
    folder = tmp_path_factory.mktemp("studio")
    if given := os.environ.get("SMOOTH_STUDIO_LORA"):
        shutil.copytree(given, folder / ADAPTER)
    else:
        write_adapter("builtin:tiny", str(folder / ADAPTER))
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> EditModel:
    return open_model(str(home / ADAPTER), scratch=str(home / "scratch"))


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """A studio of the tests' own; what it writes to its log holds no traceback."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "smooth", "studio", "--port", "0", "--model", ADAPTER],
            cwd=home, stdout=log, stderr=log, env=environment | {"SMOOTH_HOME": str(home)},
        )  # fmt: skip
    try:
        until = time.monotonic() + 3 * PATIENCE / 1000
        while not (found := re.search(r"http://\S+", (home / "log").read_text())):
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < until, (home / "log").read_text()
            time.sleep(0.2)
        yield found[0]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    assert "Traceback" not in (home / "log").read_text(), (home / "log").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def of_upload_progress(complaint: Any) -> bool:
    """Gradio asks for the progress of a file, too, that its own page has just refused as too large: not found."""
    location = getattr(complaint, "location", {"url": ""})
    return "/upload_progress?" in location["url"] or str(getattr(complaint, "text", "")) == "Response"


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[[], Any]]:
    """Opens the page for another person; no page asks anybody but the studio, nor complains."""
    contexts, asked, complaints = [], [], []

    def opened() -> Any:
        contexts.append(browser.new_context(viewport=ROOM))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: complaints.append(said) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(error))
        page.goto(address)
        page.get_by_role("tab", name="Generate").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).netloc}
    assert [str(each) for each in complaints if not of_upload_progress(each)] == []


@pytest.fixture
def page(visit: Callable[[], Any]) -> Any:
    return visit()


@pytest.fixture(scope="module")
def heart(model: EditModel, home: Path) -> str:
    """A picture that somebody has."""
    (picture,) = generate.generate(model.at(0.0), ["red heart"], [7], steps=20, guidance=3.0)
    path = home / "my heart.png"
    Image.fromarray(picture).resize((320, 240)).save(path)
    return str(path)


def go(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_role("button", name="More settings").click()
    fill(page, f"{tab.lower()}-steps", STEPS)


def fill(page: Any, name: str, value: float) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def press(page: Any, label: str) -> None:
    page.get_by_role("button", name=label, exact=True).click()


def upload(page: Any, tab: str, path: str) -> None:
    page.locator(f"#{tab}-upload input[type=file]").set_input_files(path)


def loaded(page: Any, name: str) -> None:
    page.wait_for_function(
        "name => [...document.querySelectorAll(`#${name} img`)].every(image => image.complete && image.naturalWidth)",
        arg=name,
    )


def shown(page: Any, tab: str, count: int) -> list[bytes]:
    """The files of a tab's result, as a download has them."""
    pictures = page.locator(f"#{tab}-result .thumbnail-lg img, #{tab}-result .thumbnail-item img")
    pictures.nth(count - 1).wait_for()
    loaded(page, f"{tab}-result")
    assert pictures.count() == count
    return [page.request.get(each.get_attribute("src")).body() for each in pictures.all()]


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def same(found: bytes, expected: np.ndarray) -> bool:
    """Whether they are the same but for a rounding: the two processes may have other numbers of threads."""
    return int(np.abs(pixels(found).astype(int) - expected).max()) <= 1


def look(page: Any, name: str) -> None:
    """Nothing is wider than a phone; and a picture for the README, when it is asked for."""
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.set_viewport_size(ROOM)
    if SCREENSHOTS:
        page.get_by_role("button", name="More settings").filter(visible=True).click()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        with Image.open(io.BytesIO(page.screenshot(full_page=True))) as taken:
            taken.convert("RGB").quantize(256).save(Path(SCREENSHOTS, f"studio-{name}.png"), optimize=True)


def test_generate_shows_base_and_smooth_as_the_command_line_paints_them(
    page: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(page, "Generate")
    page.locator("#generate-prompt textarea").fill("grinning face")
    fill(page, "generate-seed", 3)
    press(page, "Generate")
    base, smooth, *_ = found = shown(page, "generate", 4)
    assert len({pixels(each).tobytes() for each in found}) == 4
    look(page, "generate")
    monkeypatch.chdir(home)
    for data, strength in ((base, 0.0), (smooth, 1.0)):
        parameters, words = media.read_parameters(data)
        assert (parameters["prompts"], parameters["seed"], parameters["strength"]) == (["grinning face"], [3], strength)
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.stderr
        assert same(data, pixels(Path("picture.png").read_bytes()))
        assert media.read_parameters("picture.png") == (parameters, words)


def test_interpolate_has_a_slider_over_frames_and_the_curve_beneath(page: Any) -> None:
    go(page, "Interpolate")
    frames = 11 if SCREENSHOTS else 3
    fill(page, "interpolate-frames", frames)
    press(page, "Interpolate")
    strips = []
    for label in ("base", "smooth"):
        whole = page.locator(f"#interpolate-{label}-strip img")
        whole.wait_for()
        strips.append(pixels(page.request.get(whole.get_attribute("src")).body()))
    for label, strip in zip(("base", "smooth"), strips, strict=True):
        frame = page.locator(f"#interpolate-{label} img")
        ends = strip[:, :64], strip[:, -64:]
        assert np.array_equal(pixels(page.request.get(frame.get_attribute("src")).body()), ends[0])
        if label == "smooth":
            before = frame.get_attribute("src")
            fill(page, "interpolate-slider", frames)
            page.wait_for_function(
                "before => document.querySelector('#interpolate-smooth img').src !== before", arg=before
            )
            assert np.array_equal(pixels(page.request.get(frame.get_attribute("src")).body()), ends[1])
    assert page.locator("#interpolate-curve canvas, #interpolate-curve svg.marks").count() == 1
    above = [page.locator(f"#interpolate-{part}").bounding_box()["y"] for part in ("base", "smooth", "curve")]
    assert above == sorted(above)
    with page.expect_download() as film:
        press(page, "Film as GIF")
    with Image.open(film.value.path()) as opened:
        assert (opened.format, opened.size) == ("GIF", (2 * 64, 64))
    if SCREENSHOTS:
        fill(page, "interpolate-slider", frames // 2 + 1)
    look(page, "interpolate")


def test_interpolate_goes_between_two_uploads(page: Any, heart: str) -> None:
    go(page, "Interpolate")
    fill(page, "interpolate-frames", 3)
    page.get_by_role("button", name="Between two pictures of yours").click()
    upload(page, "interpolate-first", heart)
    page.locator("#interpolate-first-seen img").wait_for()
    press(page, "Interpolate")
    page.get_by_text("one picture of two; upload the other one").wait_for()
    upload(page, "interpolate-last", heart)
    page.locator("#interpolate-last-seen img").wait_for()
    press(page, "Interpolate")
    strip = page.locator("#interpolate-smooth-strip img")
    strip.wait_for()
    data = page.request.get(strip.get_attribute("src")).body()
    assert media.read_parameters(data)[0]["picture"] == ["my heart.png"] * 2
    first, own = pixels(data)[:, :64], media.read_picture(heart, 64)
    assert np.square(first / 255.0 - own / 255.0).mean() < 0.1


def test_invert_takes_an_upload_and_paints_it_again(
    page: Any, heart: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(page, "Invert")
    fill(page, "invert-null-text", NULL_TEXT_STEPS)
    upload(page, "invert", heart)
    page.locator("#invert-seen img").wait_for()
    press(page, "Invert")
    found = shown(page, "invert", 4)
    given, bound, *back = (pixels(each) for each in found)
    assert np.array_equal(given, media.read_picture(heart, 64))
    distances = [np.square(given / 255.0 - each / 255.0).mean() for each in (bound, *back)]
    assert distances[0] < 1.1 * min(distances)  # nearly a bound
    assert max(distances) < 0.1
    assert "came back" in page.locator("#invert-table").inner_text()
    look(page, "invert")
    monkeypatch.chdir(home)
    words = media.read_parameters(found[-1])[1]
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.stderr
    assert same(found[-1], pixels(Path("back.png").read_bytes()))


def test_edit_changes_an_upload(page: Any, heart: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(page, "Edit")
    fill(page, "edit-null-text", NULL_TEXT_STEPS)
    upload(page, "edit", heart)
    page.locator("#edit-seen img").wait_for()
    press(page, "Edit")
    found = shown(page, "edit", 4)
    assert len({pixels(each).tobytes() for each in found}) == 4
    look(page, "edit")
    monkeypatch.chdir(home)
    words = media.read_parameters(found[-1])[1]
    assert {"--ratio=0.8", "--strength=1.0", "my heart.png", "blue heart"} <= set(words)
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.stderr
    assert same(found[-1], pixels(Path("edit.png").read_bytes()))
    page.get_by_label("SDEdit (baseline)").check()
    before = page.locator("#edit-result img").first.get_attribute("src")
    press(page, "Edit")
    page.wait_for_function("before => document.querySelector('#edit-result img').src !== before", arg=before)
    noised = shown(page, "edit", 4)
    assert media.read_parameters(noised[-1])[0]["sdedit"] == [0.8]
    assert not same(noised[-1], pixels(found[-1]))


def test_drag_takes_two_clicks(page: Any, heart: str) -> None:
    go(page, "Drag")
    fill(page, "drag-iterations", 80 if SCREENSHOTS else 2)
    upload(page, "drag", heart)
    seen = page.locator("#drag-seen img")
    before = ""
    for x, y in ((0.48, 0.75), (0.48, 0.92)):
        seen.wait_for()
        loaded(page, "drag-seen")  # a click on a picture that isn't there yet is on no place of it
        box = seen.bounding_box()
        before = seen.get_attribute("src")
        seen.click(position={"x": x * box["width"], "y": y * box["height"]})
        page.wait_for_function("before => document.querySelector('#drag-seen img').src !== before", arg=before)
    press(page, "Drag")
    base, smooth = shown(page, "drag", 2)
    assert not np.array_equal(pixels(base), pixels(smooth))
    ((x, y), (to_x, to_y)) = (
        map(float, point.split(",")) for point in media.read_parameters(smooth)[0]["move"][0].split(":")
    )
    assert [x, y, to_x, to_y] == pytest.approx([30.2, 47.5, 30.2, 58.4], abs=0.6)
    look(page, "drag")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("large.png", "maximum"),
        ("words.png", "words.png is no picture; give a whole PNG, JPEG, WEBP, GIF or BMP"),
        ("dot.png", "dot.png has 1 x 1 pixels; give at least 16 on each side"),
    ],
)
def test_a_bad_picture_gives_a_message(page: Any, tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    if name == "dot.png":
        Image.new("RGB", (1, 1)).save(path)
    else:
        path.write_bytes(b"no picture at all" if name == "words.png" else os.urandom(20 * 2**20))
    page.get_by_role("tab", name="Invert").click()
    upload(page, "invert", str(path))
    page.get_by_text(message).first.wait_for()
    assert "Traceback" not in page.locator("body").inner_text()
    press(page, "Invert")
    page.get_by_text("upload a picture first").wait_for()


def test_large_files_and_other_names_are_refused_by_the_server_itself(address: str) -> None:
    import httpx

    large = {"files": ("large.png", bytes(20 * 2**20), "image/png")}
    answer = httpx.post(f"{address}gradio_api/upload", files=large, timeout=60)
    assert answer.status_code == 413
    assert http.request(address, headers={"Host": "elsewhere.example"})[0] == 400  # type: ignore[index]


def test_two_people_at_once_each_get_their_own(visit: Callable[[], Any], model: EditModel) -> None:
    asked = {"red heart": 11, "pizza": 12}
    pages = {prompt: visit() for prompt in asked}
    for prompt, page in pages.items():
        go(page, "Generate")
        page.locator("#generate-prompt textarea").fill(prompt)
        fill(page, "generate-seed", asked[prompt])
        fill(page, "generate-count", 1)
    for page in pages.values():
        press(page, "Generate")
    for prompt, page in pages.items():
        for data, strength in zip(shown(page, "generate", 2), (0.0, 1.0), strict=True):
            told, _ = media.read_parameters(data)
            assert (told["prompts"], told["seed"], told["strength"]) == ([prompt], [asked[prompt]], strength)
            # As told: on a busy machine a page that is still being built may take back what was filled in.
            sampled = {name: told[name] for name in ("steps", "guidance")}
            own = generate.generate(model.at(strength), [prompt], [asked[prompt]], **sampled)
            assert same(data, own[0])


def test_work_that_is_called_off_ends(page: Any) -> None:
    go(page, "Generate")
    fill(page, "generate-steps", 100)
    fill(page, "generate-count", 4)
    press(page, "Generate")
    page.get_by_text("painting, base").first.wait_for()
    press(page, "Cancel")
    fill(page, "generate-steps", 1)
    fill(page, "generate-count", 1)
    (studio,) = [each for each in psutil.Process().children() if "studio" in each.cmdline()]
    before = studio.cpu_times().user
    press(page, "Generate")
    shown(page, "generate", 2)
    assert studio.cpu_times().user - before < 15  # the other's 800 steps take 50 s of a core, whoever else computes
