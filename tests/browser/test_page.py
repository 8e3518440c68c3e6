"""The page about a run, `report.html`."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from sae import UserError
from sae.browser import write_report
from sae.browser.page import evenly_ranked
from sae.metrics.examples import LatentExamples

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data))

    def text(self, tag: str) -> list[str]:
        return [data for inside, data in self.texts if inside == tag]


@pytest.fixture
def source(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    assert not list(run_dir.glob(".*")), "a temporary file was left behind"
    return path.read_text(encoding="utf-8")


def test_text_from_the_data_is_escaped(source):
    page = Page(source)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "b", "i", "iframe", "object"})
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text("span")
    assert '" onmouseover="x' in page.text("span")
    assert "a run & more" in page.text("h1")
    assert any("<b>bold</b>" in text for text in page.text("pre"))
    assert any("org/model<i> · layers.3" in text for text in page.text("p"))


def test_page_has_no_scripts_and_loads_nothing(source):
    page = Page(source)
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    for tag, attrs in page.elements:
        assert tag not in ("link", "img", "a")
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith("#")
        assert attrs.get("xlink:href", "#").startswith("#")
    assert "url(http" not in source
    assert "@import" not in source


def test_ids_do_not_repeat(source):
    ids = [attrs["id"] for _, attrs in Page(source).elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_page_shows_held_out_metrics(source):
    page = Page(source)
    assert page.text("dd") == ["0.2345", "31.5", "3.12%", "0.9100"]
    numbers = [text for text in page.text("td") if text.replace(",", "").rstrip("%")[-1].isdigit()]
    rows = dict(zip(page.text("th"), numbers, strict=True))
    assert rows["FVU"] == "0.2345"
    assert rows["Held-out tokens"] == "4,096"
    assert any("2,048,000 tokens" in text for text in page.text("p"))


def test_a_metric_without_held_out_value_is_labeled_training(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    del summary["held_out"]["fvu"]
    (run_dir / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run_dir).read_text())
    assert "FVU, training" in page.text("th")
    assert page.text("dd")[0] == "0.2010"


def test_shade_of_a_token_is_its_share_of_the_largest_activation(source):
    shades = {
        attrs["title"]: attrs["class"]
        for tag, attrs in Page(source).elements
        if tag == "span" and attrs["class"].startswith("s")
    }
    assert shades == {"4": "s9", "0.4": "s1", "2": "s5"}
    assert "↵" in Page(source).text("span")


def test_page_shows_twenty_latents_from_the_rarest_to_the_most_frequent(source):
    shown = [int(text.removeprefix("Latent ")) for text in Page(source).text("h3")]
    assert len(shown) == 20
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (1, 50)
    assert "20 of 63 latents" in source


def test_evenly_ranked_latents_do_not_depend_on_the_input_order():
    single = LatentExamples(0, 0.5, 1.0, [None])
    many = [LatentExamples(i, (7 * i % 10) / 10, 1.0, [None]) for i in range(100)]
    chosen = evenly_ranked(many, 10)
    assert chosen == evenly_ranked(many[::-1], 10)
    assert [x.frequency for x in chosen] == sorted(x.frequency for x in chosen)
    assert len({x.frequency for x in chosen}) == 10
    assert evenly_ranked([single], 20) == [single]
    assert evenly_ranked([LatentExamples(1, 0.0, 0.0, [])], 20) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("examples.jsonl", "This run has no examples.jsonl"),
        ("density.json", "This run has no density.json"),
        ("metrics.csv", "This run has no metrics.csv"),
        ("summary.json", "This run has no summary.json"),
        ("config.yaml", "summary.json</summary>"),
        ("sae/sae.json", "d_sae 64"),
    ],
)
def test_page_says_which_file_is_missing(run_dir, missing, message):
    (run_dir / missing).unlink()
    source = write_report(run_dir).read_text()
    assert message in source
    Page(source)


def test_writing_the_page_again_gives_the_same_page(run_dir, source):
    assert write_report(run_dir).read_text(encoding="utf-8") == source


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run: it has none of config.yaml"):
        write_report(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), ("[]", "holds a list")])
def test_a_broken_summary_is_refused(run_dir, content, message):
    (run_dir / "summary.json").write_text(content)
    with pytest.raises(UserError, match=f"summary.json {message}"):
        write_report(run_dir)


def test_a_failed_write_leaves_the_old_page(run_dir, source, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", fail)
    (run_dir / "summary.json").write_text("{}")
    with pytest.raises(OSError):
        write_report(run_dir)
    assert (run_dir / "report.html").read_text(encoding="utf-8") == source
    assert not list(run_dir.glob(".*"))
