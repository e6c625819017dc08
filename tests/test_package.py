"""The package as its users get it: its public names, what it imports, and what it declares."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import atkd_jax as atkd

ROOT = Path(__file__).parent.parent
# Distributions whose modules have other names, and what needs no declaration.
IMPORTED_AS = {
    "absl-py": "absl",
    "ai-edge-litert": "ai_edge_litert",
    "importlib-resources": "importlib_resources",
    "ml-collections": "ml_collections",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "tensorboardx": "tensorboardX",
    "tensorflow-cpu": "tensorflow",
    "tensorflow-datasets": "tensorflow_datasets",
}
OPTIONAL = {
    "tflite_runtime": "the predecessor of ai_edge_litert, on older boards",
    "torch": "compared with where it is installed",
}


def requirements(lines):
    """The modules of requirements such as "jax>=0.10,<0.13; platform_system == 'Linux'"."""
    names = (re.match(r"[\w.-]+", line) for line in lines if not line.startswith(("#", "-")))
    names = (re.sub(r"[_.]", "-", name.group()).lower() for name in names if name)
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def imported(folder):
    """{top-level module: a file that imports it}, in functions as well."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            found |= {name.split(".")[0]: path.relative_to(ROOT) for name in names}
    return found


OURS = ["atkd_jax", "configs", "experiments", "examples", "tests"]


@pytest.mark.parametrize("folder", OURS)
def test_what_is_imported_is_declared(folder):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = sum(project["optional-dependencies"].values(), [])
    declared = requirements(project["dependencies"]) | requirements(optional)
    if folder == "tests":
        declared |= requirements((ROOT / "requirements-dev.txt").read_text().splitlines())
    helpers = {path.stem for path in (ROOT / "tests").glob("*.py")} if folder == "tests" else set()
    known = declared | set(OPTIONAL) | set(OURS) | helpers | set(sys.stdlib_module_names)
    undeclared = {name: str(path) for name, path in imported(folder).items() if name not in known}
    assert not undeclared


def test_both_lists_of_requirements_name_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert requirements(lines) == requirements(project["dependencies"])


def test_public_names_are_those_of_the_modules_that_define_them():
    for name in atkd.__all__:
        value = getattr(atkd, name)
        if not inspect.ismodule(value):
            assert value.__module__ == f"atkd_jax.{atkd._MODULE_OF[name]}", name
    assert set(atkd._MODULE_OF) == {
        name for name in atkd.__all__ if not inspect.ismodule(getattr(atkd, name))
    }
    typed = ast.parse(Path(atkd.__file__).read_text())
    [block] = [node for node in typed.body if isinstance(node, ast.If)]
    assert sorted(alias.name for node in block.body for alias in node.names) == atkd.__all__
    with pytest.raises(AttributeError, match="'atkd_jax' has no attribute 'Methods'"):
        _ = atkd.Methods


@pytest.mark.slow
def test_importing_the_package_imports_nothing_heavy():
    code = """
        import sys, atkd_jax as atkd
        print({"jax", "flax", "numpy", "tensorflow"} & set(sys.modules))
        [getattr(atkd, name) for name in atkd.__all__]
        print("tensorflow" in sys.modules, "torch" in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out == "set()\nFalse False\n"


def test_the_example_of_the_docstring_is_right():
    """Traced, not compiled: shapes show that everything fits."""
    code = textwrap.dedent(atkd.__doc__.split("\n\n")[2])
    code = code.replace("jax.jit(step)(", "jax.jit(step).eval_shape(")
    code = re.sub(r"= ([\w.]*\.init\(.*\))", r"= jax.eval_shape(lambda: \1)", code)
    names: dict = {}
    exec(code, names)
    assert {"loss", "ce", "kd", "top1"} == set(names["metrics"])


def test_every_golden_file_is_described():
    folder = ROOT / "tests" / "golden"
    described = re.findall(r"[\w.]+", (folder / "README.md").read_text())
    missing = {path.stem for path in folder.glob("*.npz")} - {
        name.removesuffix(".npz") for name in described
    }
    assert not missing


def test_links_of_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*/*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            assert "://" in link or (document.parent / link).exists(), f"{document}: {link}"
