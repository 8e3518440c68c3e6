"""The plots of a run."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sae.browser import curves_png
from sae.browser.plots import curves_svg, density_svg
from sae.browser.run_data import RunData
from sae.metrics.firing import Firing


def words(svg: str) -> str:
    return " ".join("".join(node.itertext()) for node in ET.fromstring(svg).iter() if node.text)


def words_of_curves(run: RunData) -> list[str]:
    return [words(svg) for svg in curves_svg(run)]


def test_every_curve_in_the_file_gets_a_plot(run_dir):
    texts = words_of_curves(RunData.read(run_dir))
    titles = ("FVU", "Loss", "Dead latents", "L0", "Learning rate", "Tokens per second")
    assert len(texts) == len(titles)
    for title, text in zip(titles, texts, strict=True):
        assert title in text
    assert "held-out 0.234" in texts[0]
    (run_dir / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n")
    run = RunData.read(run_dir)
    (text,) = words_of_curves(run)
    assert run.curves.x_name == "step"
    assert "Loss" in text


def test_terms_of_the_loss_are_drawn_with_their_sum(run_dir):
    table = "step,loss,loss_fvu,loss_auxk\n1,0.5,0.5,0\n2,0.3,0.25,0.05\n"
    (run_dir / "metrics.csv").write_text(table)
    (text,) = words_of_curves(RunData.read(run_dir))
    for name in ("Loss", "sum", "fvu", "auxk"):
        assert name in text
    (run_dir / "metrics.csv").write_text("step,loss,loss_fvu\n1,0.5,0.5\n2,0.3,0.3\n")
    (text,) = words_of_curves(RunData.read(run_dir))
    assert "sum" not in text, "a single term is the loss itself"


def test_legends_are_above_the_curves(run_dir):
    """Text over the axes would cover curves: every legend lies above them."""
    (run_dir / "metrics.csv").write_text("step,fvu\n1,0.5\n2,0.25\n")
    (svg,) = curves_svg(RunData.read(run_dir))
    texts = [node for node in ET.fromstring(svg).iter() if node.tag.endswith("text")]
    y_of = {"".join(node.itertext()): float(node.get("y") or _translation(node)) for node in texts}
    top_tick = min(y for text, y in y_of.items() if text.replace(".", "").isdigit())
    assert y_of["held-out 0.234"] < top_tick


def _translation(node: ET.Element) -> float:
    return float(node.get("transform", "").partition("translate(")[2].split(")")[0].split()[1])


def test_plots_take_the_color_of_the_page(run_dir):
    for svg in curves_svg(RunData.read(run_dir)):
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "#ffffff" not in svg


@pytest.mark.parametrize("text", ["", "step,tokens,fvu\n", "step,tokens,fvu\n1,10,nan\n2,20,\n"])
def test_a_file_without_numbers_gives_no_plots(run_dir, text):
    (run_dir / "metrics.csv").write_text(text)
    assert curves_svg(RunData.read(run_dir)) == []


def test_empty_and_non_finite_cells_are_left_out(run_dir):
    (run_dir / "metrics.csv").write_text("step,tokens,fvu,loss\n1,10,0.5,\n2,20,nan,3\n3,,1,inf\n")
    run = RunData.read(run_dir)
    assert run.curves.points == {"fvu": [(10, 0.5)], "loss": [(20, 3)]}


def test_curves_of_a_long_run_are_thinned(run_dir):
    short = curves_svg(RunData.read(run_dir))
    rows = "\n".join(f"{i},{i},{np.sin(i) + 2},{np.cos(i) + 2}" for i in range(50_000))
    (run_dir / "metrics.csv").write_text("step,tokens,fvu,loss\n" + rows)
    long = curves_svg(RunData.read(run_dir))
    assert sum(map(len, long)) < 3 * sum(map(len, short))


@pytest.mark.parametrize("never_fired", [3, 1000])
def test_density_plot_counts_latents_that_never_fired(never_fired):
    firing = Firing(1000)
    firing.tokens = 4096
    firing.counts[: 1000 - never_fired] = 5
    text = words(density_svg(firing))
    assert f"{never_fired:,} of 1,000 never fired in 4,096 tokens" in text


@pytest.mark.parametrize("missing", [None, "density.json", "metrics.csv"], ids=str)
def test_png_is_drawn_from_the_files_there_are(run_dir, tmp_path, missing):
    from matplotlib.image import imread

    if missing:
        (run_dir / missing).unlink()
    path = tmp_path / "curves.png"
    curves_png(run_dir, path)
    image = imread(path)
    assert image.shape[1] > 500 if missing != "metrics.csv" else image.shape[1] > 300
    assert image[0, 0].tolist() == [1, 1, 1, 1]
    assert image[..., :3].std() > 0.05
    assert not list(tmp_path.glob(".*"))
