"""The report in headless Chromium, on a phone and on a desk."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from smooth.evaluate import page, report
from tests.unit.test_page import metrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--allow-file-access-from-files",
]
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
# The window of headless Chromium is 500 px wide at least, so the page is looked at in a frame.
FRAME = """<body style="margin:0"><iframe src="report.html" style="border:0;width:{width}px;height:900px"></iframe>
<pre></pre><script>
document.querySelector("iframe").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement, images = [...page.images];
  const loaded = images.filter(image => image.naturalWidth > 0).length;
  document.querySelector("pre").textContent = `FOUND ${{root.scrollWidth}} ${{loaded}}`;
}};
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows_and_all_pictures_load(width: int, tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    strips = rng.integers(0, 255, (3, 11, 32, 32, 3), np.uint8)
    report.draw_strips(str(tmp_path / "strips.png"), ["a prompt that is long, " * 9] * 3, strips, strips)
    report.draw_curves(str(tmp_path / "curves.png"), rng.uniform(4, 9, (20, 10)), rng.uniform(4, 9, (20, 10)))
    report.draw_histogram(str(tmp_path / "histogram.png"), rng.uniform(4, 9, (20, 10)), rng.uniform(4, 9, (20, 10)))
    pictures = {name: (tmp_path / name).read_bytes() for name in ("strips.png", "curves.png", "histogram.png")}
    names = ("models:/a-name-that-goes-on-and-on-without-a-space-to-break-it-at@candidate", "builtin:tiny")
    html = page.render(names, metrics(), pictures, page.Cost(100.0, 50), "today")
    (tmp_path / "report.html").write_text(html)
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    shown = subprocess.run(
        [str(CHROMIUM), *FLAGS, *QUIET, f"--user-data-dir={tmp_path}/profile", "--window-size=1600,1000",
         "--virtual-time-budget=20000", "--dump-dom", f"file://{tmp_path}/frame.html"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"FOUND (\d+) (\d+)", shown)
    assert found, shown[-500:]
    assert [int(group) for group in found.groups()] == [width, len(pictures)]
