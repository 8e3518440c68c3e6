"""Imports between packages, circles between files, and the cost of importing a package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

# Single files of `sae` that every package may import.
COMMON = {
    "sae.argument_types",
    "sae.configurable",
    "sae.errors",
    "sae.files",
    "sae.legacy",
    "sae.progress",
}
# The packages that each package may import, besides itself, `COMMON` and libraries.
# docs/explanation/folders.md has the same as a table.
MAY_IMPORT = {
    "sae_kernels": set(),
    "sae.activations": {"sae_kernels"},  # `Codes`, for true features
    "sae.runs": set(),
    "sae.inference": {"sae_kernels"},
    "sae.autoencoder": {"sae.inference", "sae_kernels"},
    "sae.formats": {"sae.autoencoder", "sae_kernels"},
    "sae.worlds": {"sae.activations", "sae_kernels"},
    "sae.metrics": {"sae.autoencoder", "sae.activations", "sae.inference", "sae_kernels"},
    "sae.sweep": {"sae.runs"},
    "sae.browser": {"sae.metrics", "sae.runs", "sae.sweep"},
    "sae.training": {
        "sae.activations",
        "sae.autoencoder",
        "sae.inference",
        "sae.metrics",
        "sae.runs",
        "sae_kernels",
    },
    "sae.evaluation": {
        "sae.activations",
        "sae.autoencoder",
        "sae.inference",
        "sae.metrics",
        "sae.training",
        "sae_kernels",
    },
    "sae.planner": {
        "sae.activations",
        "sae.autoencoder",
        "sae.evaluation",
        "sae.metrics",
        "sae.runs",
        "sae.training",
    },
    "sae.lightning": {
        "sae.activations",
        "sae.autoencoder",
        "sae.browser",
        "sae.evaluation",
        "sae.metrics",
        "sae.runs",
        "sae.sweep",
        "sae.training",
        "sae.worlds",
    },
    "sae.api": {
        "sae.activations",
        "sae.autoencoder",
        "sae.lightning",
        "sae.runs",
        "sae.training",
    },
    "sae.cli": {
        "sae.activations",
        "sae.autoencoder",
        "sae.browser",
        "sae.evaluation",
        "sae.lightning",
        "sae.metrics",
        "sae.planner",
        "sae.runs",
        "sae.sweep",
        "sae.training",
        "sae.worlds",
        "sae_configs",
    },
}
ABOVE_THE_STEP = {"sae.api", "sae.lightning", "sae.cli"}
ONLY_THERE = {"lightning", "wandb", "ray", "jsonargparse", "pytorch_lightning"}
ONLY_IN_KERNELS = {"triton"}


def package_of(module: str) -> str:
    if module.split(".")[0] in ("sae_kernels", "sae_configs"):
        return module.split(".")[0]
    return ".".join(module.split(".")[:2])


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            found.add(node.module)
            if node.module == "sae":
                found |= {f"sae.{alias.name}" for alias in node.names}
    return found


def files(package: str) -> list[Path]:
    folder = REPO / ("kernels" if package == "sae_kernels" else package.replace(".", "/"))
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package):
    assert files(package), f"{package} is empty"
    public = {"sae.SAE": "sae.autoencoder", "sae.UserError": "sae.errors"}
    for file in files(package):
        for module in imports(file):
            module = public.get(module, module)
            top = module.split(".")[0]
            if top in ONLY_THERE:
                assert package in ABOVE_THE_STEP, f"{file} imports {module}"
            if top in ONLY_IN_KERNELS:
                assert package == "sae_kernels", f"{file} imports {module}"
            if top in ("sae", "sae_kernels", "sae_configs") and module != "sae":
                target = package_of(module)
                allowed = MAY_IMPORT[package] | {package}
                if package != "sae_kernels":
                    allowed |= COMMON
                assert target in allowed, f"{file} imports {module}"


def test_the_page_on_folders_lists_the_same_imports():
    page = (REPO / "docs" / "explanation" / "folders.md").read_text()
    rows = re.findall(r"^\| `([a-z/]+)/` \|.*\| ([a-z, ]+) \|$", page, re.MULTILINE)
    name = lambda folder: "sae_kernels" if folder == "kernels" else f"sae.{folder}"
    listed = {
        name(folder.removeprefix("sae/")): {name(n) for n in names.split(", ") if n != "nothing"}
        for folder, names in rows
    }
    assert listed == {package: targets - {"sae_configs"} for package, targets in MAY_IMPORT.items()}


def module_files() -> dict[str, Path]:
    """Return the file of every module of `sae` and `sae_kernels` by its import name."""
    modules = {}
    for package, folder in (("sae", REPO / "sae"), ("sae_kernels", REPO / "kernels")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            modules[".".join((package, *parts))] = file
    return modules


def imported_modules(file: Path, modules: dict[str, Path]) -> set[str]:
    """Return our modules that `file` imports, at its top or in a function.

    Imports under `if TYPE_CHECKING:` do not count: they never run, and a type may name both sides.
    """
    tree = ast.parse(file.read_text())
    not_run = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in not_run:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else node.module for name in submodules}
    return names & set(modules)


def test_no_two_files_import_each_other_in_a_circle():
    modules = module_files()
    graph = {name: imported_modules(file, modules) - {name} for name, file in modules.items()}
    while leaves := [name for name, targets in graph.items() if not targets]:
        for name in leaves:
            del graph[name]
        graph = {name: targets - set(leaves) for name, targets in graph.items()}
    assert not graph, "in a circle, or importing one: " + ", ".join(sorted(graph))


def test_every_file_of_sae_lightning_imports_lightning():
    lines = 0
    for file in files("sae.lightning"):
        lines += len(file.read_text().splitlines())
        if file.name != "__init__.py":
            tops = {module.split(".")[0] for module in imports(file)}
            assert tops & {"lightning", "pytorch_lightning"}, f"{file} does not import lightning"
    assert lines < 2000


def test_no_private_name_is_imported_across_packages():
    for package in MAY_IMPORT:
        for file in files(package):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.ImportFrom) or not node.module:
                    continue
                ours = node.module.split(".")[0] in ("sae", "sae_kernels")
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                private = [n for n in names if n.startswith("_") and not n.startswith("__")]
                if ours and private:
                    assert package_of(node.module) == package, f"{file} imports {private}"


def test_every_folder_is_listed_here_and_in_pyproject():
    packages = {f"sae.{p.name}" for p in (REPO / "sae").iterdir() if (p / "__init__.py").is_file()}
    assert packages | {"sae_kernels"} == set(MAY_IMPORT)
    kernels = {"sae_kernels", "sae_kernels.cpu", "sae_kernels.gpu"}
    packaged = set(
        tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    folders = {
        ".".join(p.parent.relative_to(REPO).parts) for p in (REPO / "sae").rglob("__init__.py")
    }
    assert packaged == folders | kernels | {"sae_configs"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import sae_kernels.encode_topk, sae_kernels.decode", "sae lightning wandb triton"),
        ("from sae import SAE", "lightning wandb transformers triton matplotlib"),
        ("import sae.lightning.runner", "wandb tensorboard"),
    ],
)
def test_importing_brings_in_no_more_than_it_needs(statement, unwanted):
    code = f"{statement}\nimport sys\nprint([m for m in {unwanted.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_folder_kernels_does_not_shadow_hugging_face_kernels(tmp_path):
    """`python train.py` puts the checkout first on the path; theirs must still be found."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("THEIRS = True\n")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"
        "import kernels, sae_kernels.encode_topk\n"
        "print(hasattr(kernels, 'THEIRS') or 'site-packages' in kernels.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
