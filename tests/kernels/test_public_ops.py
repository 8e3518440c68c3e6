"""The table of ops in `kernels/__init__.py`, and the import name `kernels`."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sae_kernels

REPO = Path(__file__).resolve().parents[2]
# Modules that hold no op of their own.
SHARED = {
    "__init__",
    "backend",
    "codes",
    "custom_op",
    "deterministic_sum",
    "encoder_backward",
    "hyper_values",
    "listed_latents",
    "matmul",
    "pairs",
    "reference",
    "row_grads",
    "slots",
    "thread_invariance",
}


def table() -> dict[str, tuple[list[str], str, str]]:
    """Return (functions, cpu half, gpu half) of each module in the table."""
    lines = [line for line in (sae_kernels.__doc__ or "").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: (row[1].split(", "), row[3], row[4]) for row in rows}


def test_the_table_lists_every_module_with_an_op():
    modules = {path.stem for path in (REPO / "kernels").glob("*.py")}
    assert set(table()) == modules - SHARED


@pytest.mark.parametrize("name", table())
def test_functions_and_halves_of_a_row_exist(name):
    functions, cpu, gpu = table()[name]
    module = importlib.import_module(f"sae_kernels.{name}")
    for function in functions:
        assert getattr(module, function).__module__ == module.__name__
    for folder, half in (("cpu", cpu), ("gpu", gpu)):
        assert half == "-" or (REPO / "kernels" / folder / f"{half}.py").is_file()


def run_in_checkout(code: str, path: list[str]) -> str:
    """Run code with the checkout first on the path, without site-packages, then `path`."""
    setup = f"import sys; sys.path[1:1] = {path!r}\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", setup + code],
        cwd=REPO,
        env={},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_another_package_called_kernels_is_imported_in_place_of_this_folder(tmp_path):
    package = tmp_path / "kernels"
    package.mkdir()
    package.joinpath("__init__.py").write_text("from .hub import get_kernel\n__version__ = '1'\n")
    package.joinpath("hub.py").write_text("get_kernel = 'found'\n")
    code = "import kernels\nfrom kernels.hub import get_kernel\n"
    code += "print(kernels.__version__, get_kernel, kernels.__file__)"
    expected = f"1 found {package / '__init__.py'}"
    assert run_in_checkout(code, [str(tmp_path)]) == expected


def test_without_another_package_this_folder_looks_like_a_namespace_package():
    """transformers takes a `kernels` without `__file__` and `__version__` for not installed."""
    code = "import kernels\nprint(hasattr(kernels, '__file__'), hasattr(kernels, '__version__'))"
    assert run_in_checkout(code, []) == "False False"


def test_transformers_sees_no_hugging_face_kernels_where_there_is_none(tmp_path):
    transformers = pytest.importorskip("transformers")
    site = Path(transformers.__file__).parents[1]
    for entry in site.iterdir():
        if not entry.name.startswith(("kernels", "__editable__")) and entry.suffix != ".pth":
            (tmp_path / entry.name).symlink_to(entry)
    code = "from transformers.utils.import_utils import _is_package_available\n"
    code += "print(_is_package_available('kernels', return_version=True)[0])"
    assert run_in_checkout(code, [str(tmp_path)]) == "False"
