"""The page: what it holds, that it is whole, and that nothing from data can act in it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import HEX, MODELS, STAGES, write_run

from toolkit.errors import ToolkitError
from toolkit.evaluate.scores import Written, write_generations
from toolkit.report.build import build_report
from toolkit.tracking.identity import remember

VOID = {"meta", "link", "br", "input", "hr", "img"}
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>\'"&'


class Page(HTMLParser):
    """Checks that elements nest, and collects ids, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "mini")


def test_a_whole_run_has_every_section(run_dir: Path) -> None:
    path = build_report(run_dir)
    assert path == run_dir / "report.html"
    page = read(path)
    assert len(set(page.ids)) == len(page.ids)
    sections = {"stages", "evaluation", "generations", "training", "data", "layout", "provenance"}
    assert sections <= set(page.ids)
    links = {value[1:] for _, name, value in page.attributes if name == "href" and value[0] == "#"}
    assert links <= set(page.ids), "a link inside the page leads nowhere"
    for name, config in STAGES.items():
        assert name in page.text
        assert config["kind"] in page.text
    for model in MODELS:
        assert model in page.text
    for said in (
        "7 of 7 stages complete",
        "83.2",
        "Return a new list containing the items of the iterable.",
        "megatron-core",
        HEX[:12],
        "9,380 written",
        "8 ranks = 2 tensor × 2 pipeline × 2 data",
        "rank 7",
        "train_iters: 200",
        "not finite",
    ):
        assert said in page.text, said
    for title in ("Loss", "Learning rate", "Gradient norm", "Throughput", "Preference accuracy"):
        assert title in page.text


def test_the_page_needs_nothing_else_and_allows_nothing_else(run_dir: Path) -> None:
    page = read(build_report(run_dir))
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert value.startswith(("#", "data:")), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
    text = (run_dir / "report.html").read_text()
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [v for t, n, v in page.attributes if n == "content" and "default-src" in v]
    assert "default-src 'none'" in policy
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert page.tags.count("script") == 1


def test_text_from_data_is_inert_wherever_it_comes_from(run_dir: Path) -> None:
    state = json.loads((run_dir / "base" / "state.json").read_text())
    state |= {"status": "failed", "error": {"message": EVIL, "where": EVIL, "hint": EVIL}}
    (run_dir / "base" / "state.json").write_text(json.dumps(state))
    manifest = run_dir / "base" / "artifact" / "artifact.json"
    manifest.unlink()
    (run_dir / "base" / "logs" / "worker.log").write_text(EVIL)
    rows = [{"step": i, "loss": 1.0, EVIL: i} for i in range(3)]
    (run_dir / "chat" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    stage = run_dir / "corpus" / "stage.yaml"
    stage.write_text(stage.read_text().replace("sample:python-docs", json.dumps(EVIL)))
    artifact = run_dir / "corpus" / "artifact" / "artifact.json"
    changed = json.loads(artifact.read_text())
    changed["info"] |= {"backend": EVIL, "sources": [EVIL]}
    changed["versions"]["evil"] = EVIL
    artifact.write_text(json.dumps(changed))
    scores = run_dir / "scores" / "artifact"
    (scores / "scores.json").write_text(
        (scores / "scores.json").read_text().replace("Answer loss", json.dumps(EVIL)[1:-1])
    )
    write_generations(scores, [Written(EVIL, "chat", EVIL, 3, "stop", True)])
    page = read(build_report(run_dir))
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 0
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.text.count(EVIL) >= 8


def test_a_run_that_failed_says_why_and_shows_what_there_is(tmp_path: Path) -> None:
    waiting = dict.fromkeys(("base-hf", "chat", "preferred", "scores"), "pending")
    run_dir = write_run(tmp_path / "mini", statuses={"base": "failed", **waiting})
    page = read(build_report(run_dir))
    assert {"stages", "training", "data", "provenance"} <= set(page.ids)
    assert "evaluation" not in page.ids
    assert "2 of 7 stages complete" in page.text
    for said in (
        "base failed",
        "loss is not finite at iteration 117",
        "lower lr, or set on_nan: skip",
        "Traceback: it broke <here>",
    ):
        assert said in page.text, said
    edges = re.findall(r"<title>(\S+) takes (\S+)</title>", (run_dir / "report.html").read_text())
    assert ("scores", "base-hf") in edges, "references of stages that have not begun"


@pytest.mark.parametrize("status", ["running", "interrupted", "pending"])
def test_a_run_at_any_moment_has_a_page(tmp_path: Path, status: str) -> None:
    statuses = dict.fromkeys(list(STAGES)[2:], status)
    run_dir = write_run(tmp_path / "mini", statuses=statuses)
    page = read(build_report(run_dir))
    assert "2 of 7 stages complete" in page.text
    expected = "failed" if status == "running" else status
    assert expected in page.text, "a worker that holds no lock is not running"


def test_files_that_cannot_be_read_are_named_and_the_rest_is_shown(run_dir: Path) -> None:
    (run_dir / "base" / "state.json").write_text("{broken")
    (run_dir / "scores" / "artifact" / "scores.json").write_text("[]")
    (run_dir / "chat" / "artifact" / "artifact.json").write_text("")
    with (run_dir / "base" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 201, "lo')
    page = read(build_report(run_dir))
    for said in ("state.json", "scores.json", "artifact.json can't be read", "Loss"):
        assert said in page.text, said


def test_almost_nothing_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "only"
    folder.mkdir(parents=True)
    (folder / "stage.yaml").write_text("stage: only\nkind: new-kind\n")
    page = read(build_report(tmp_path / "run"))
    assert "only" in page.text
    assert "new-kind" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="not a run folder"):
        build_report(tmp_path)
    with pytest.raises(ToolkitError, match="no such run folder"):
        build_report(tmp_path / "gone")


def test_blank_lines_are_counted_instead_of_shown(run_dir: Path) -> None:
    texts = [("a\n\nb\n\n\n\n \n\nc\n\n\n", "base-hf"), ("\n\n", "chat")]
    rows = [Written("say", model, text, 9, "stop", True) for text, model in texts]
    write_generations(run_dir / "scores" / "artifact", rows)
    page = read(build_report(run_dir))
    assert "a\n\nb\n⋮ 6 line breaks\nc" in page.text
    assert "(no visible text)" in page.text


def test_the_same_run_makes_the_same_page(run_dir: Path) -> None:
    def page() -> str:
        text = build_report(run_dir).read_text()
        return re.sub(r"Made [^<]*", "", text)

    assert page() == page()


def test_a_stage_links_its_pages_in_trackers(run_dir: Path) -> None:
    remember(run_dir / "base", "wandb", url="https://wandb.ai/us/p/runs/abc")
    remember(run_dir / "base", "mlflow", url="javascript:alert(1)")
    text = build_report(run_dir).read_text(encoding="utf-8")
    assert '<a href="https://wandb.ai/us/p/runs/abc">wandb</a>' in text
    assert "javascript:alert" not in text
