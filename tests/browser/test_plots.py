from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sae.browser import curves_png
from sae.browser.plots import curves_svg, density_svg
from sae.browser.run_data import Run
from sae.metrics.firing import Firing


def words(svg: str) -> str:
    return " ".join("".join(node.itertext()) for node in ET.fromstring(svg).iter() if node.text)


def test_one_panel_for_each_curve_there_is(run_dir):
    text = words(curves_svg(Run.read(run_dir)))
    for title in ("FVU", "Loss", "Dead latents", "L0", "Learning rate", "Tokens per second"):
        assert title in text
    assert "held-out 0.234" in text
    (run_dir / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n")
    run = Run.read(run_dir)
    text = words(curves_svg(run))
    assert run.x_label == "step"
    assert "Loss" in text
    assert "FVU" not in text


def test_pictures_take_the_colour_of_the_page(run_dir):
    svg = curves_svg(Run.read(run_dir))
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#ffffff" not in svg


@pytest.mark.parametrize("text", ["", "step,tokens,fvu\n", "step,tokens,fvu\n1,10,nan\n2,20,\n"])
def test_nothing_to_draw_is_no_picture(run_dir, text):
    (run_dir / "metrics.csv").write_text(text)
    assert curves_svg(Run.read(run_dir)) is None


def test_empty_and_non_finite_cells_are_left_out(run_dir):
    (run_dir / "metrics.csv").write_text("step,tokens,fvu,loss\n1,10,0.5,\n2,20,nan,3\n3,,1,inf\n")
    run = Run.read(run_dir)
    assert run.curves == {"fvu": [(10, 0.5)], "loss": [(20, 3)]}


def test_a_long_run_does_not_make_a_large_page(run_dir):
    short = curves_svg(Run.read(run_dir))
    rows = "\n".join(f"{i},{i},{np.sin(i) + 2},{np.cos(i) + 2}" for i in range(50_000))
    (run_dir / "metrics.csv").write_text("step,tokens,fvu,loss\n" + rows)
    assert len(curves_svg(Run.read(run_dir))) < 3 * len(short)


@pytest.mark.parametrize("never", ["some", "all"])
def test_density_says_how_many_never_fired(never):
    firing = Firing(1000)
    firing.tokens = 4096
    if never == "some":
        firing.counts[:997] = 5
    text = words(density_svg(firing))
    assert f"{3 if never == 'some' else '1,000'} of 1,000 never fired" in text
    assert "in 4,096 tokens" in text


@pytest.mark.parametrize("missing", [None, "density.json", "metrics.csv"], ids=str)
def test_png(run_dir, tmp_path, missing):
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
