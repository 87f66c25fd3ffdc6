"""The page in headless Chromium: no overflow, no errors, and the cursor on the charts works."""

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
from fake_run import STAGES, write_run

from toolkit.report.build import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FRAME = """<!doctype html><body style="margin:0">
<iframe id="frame" src="report.html" style="border:0;width:%dpx;height:900px"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("frame");
frame.onload = () => {
  const page = frame.contentDocument;
  const root = page.documentElement;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const chart = page.querySelector(".chart svg");
  const output = page.querySelector(".chart output");
  const at = page.querySelector(".chart .at");
  const before = output.textContent;
  const box = chart.getBoundingClientRect();
  const middle = { clientX: box.left + box.width / 2, clientY: box.top + 9, bubbles: true };
  chart.dispatchEvent(new frame.contentWindow.PointerEvent("pointermove", middle));
  const hovered = [at.textContent, output.textContent];
  chart.dispatchEvent(new frame.contentWindow.PointerEvent("pointerleave"));
  const left = [at.textContent, output.textContent];
  const press = (key) =>
    chart.dispatchEvent(new frame.contentWindow.KeyboardEvent("keydown", { key }));
  press("Home");
  press("ArrowRight");
  const pressed = [at.textContent, output.textContent];
  const small = [...page.querySelectorAll("body *")].filter(
    (e) => e.checkVisibility() && e.textContent.trim() && e.children.length === 0 &&
      parseFloat(getComputedStyle(e).fontSize) * (e.closest("svg") ?
        e.closest("svg").getBoundingClientRect().width / e.closest("svg").viewBox.baseVal.width : 1)
      < 9.5).map((e) => e.tagName + ": " + e.textContent);
  const wide = [...page.querySelectorAll("body *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > root.clientWidth + 1 && !e.closest(".scroll, .graph, nav, pre")
      && !e.closest(".copy") && !e.closest(".hidden");
  }).map((e) => e.tagName + "." + e.getAttribute("class"));
  document.getElementById("found").textContent = JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth, before, hovered, left, pressed, small,
    wide: [...new Set(wide)], charts: page.querySelectorAll(".chart").length,
  });
};
</script>"""


@pytest.fixture
def browse(tmp_path: Path):
    """Opens a run's report in a frame of a given width; returns what the page measured, and the
    console's lines."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (chromium on the PATH), which is not here")

    def open_page(run_dir: Path, width: int) -> tuple[dict, list[str]]:
        build_report(run_dir)
        (run_dir / "frame.html").write_text(FRAME % width)
        serve = partial(Quiet, directory=str(run_dir))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/frame.html"
            done = subprocess.run(
                [CHROMIUM, "--headless", "--disable-gpu", "--no-sandbox", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update",
                 "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
                 "--virtual-time-budget=5000",
                 f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 200},1000",
                 "--dump-dom", address],
                capture_output=True, text=True, timeout=120, check=False,
                env={**os.environ, "HOME": str(tmp_path)},
            )  # fmt: skip
            server.shutdown()
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        assert found.group(1), (
            "the frame did not load, or its script failed: " + done.stderr[-2000:]
        )
        text = found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(text), console

    return open_page


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *ignored) -> None:
        pass


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_fits_and_is_quiet(tmp_path: Path, browse, width: int) -> None:
    found, console = browse(write_run(tmp_path / "mini"), width)
    assert console == []
    assert found["client"] == width
    assert found["scroll"] == width
    assert found["wide"] == []
    assert found["small"] == [], "text too small to read"
    assert found["charts"] > 12


def test_a_failed_run_fits_a_phone(tmp_path: Path, browse) -> None:
    statuses = {name: "failed" if name == "base" else "pending" for name in list(STAGES)[2:]}
    found, console = browse(write_run(tmp_path / "mini", statuses=statuses), 390)
    assert console == []
    assert found["scroll"] == 390


def test_long_words_do_not_widen_a_phones_page(tmp_path: Path, browse) -> None:
    run_dir = write_run(tmp_path / "mini")
    for name in ("base", "corpus"):
        path = run_dir / name / "state.json"
        state = json.loads(path.read_text())
        (run_dir / name / "artifact" / "artifact.json").unlink()
        error = {"message": "x" * 400, "where": "/a" * 200, "hint": "y" * 300}
        path.write_text(json.dumps(state | {"status": "failed", "error": error}))
        (run_dir / name / "logs" / "worker.log").write_text("z" * 3000 + "\n")
    found, _ = browse(run_dir, 390)
    assert found["scroll"] == 390


def test_the_cursor_reads_the_chart(tmp_path: Path, browse) -> None:
    found, _ = browse(write_run(tmp_path / "mini"), 900)
    step, value = found["hovered"]
    assert re.fullmatch(r"step (8\d|9\d)", step), step
    assert value != found["before"]
    assert found["left"] == ["", found["before"]]
    assert found["pressed"][0] == "step 2"
