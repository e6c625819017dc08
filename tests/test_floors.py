"""A file imports only from floors below its own, so the package reads from the bottom up."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = [
    ["types", "errors"],
    ["ranges", "events", "replace", "signals", "batch_norm"],
    ["ops", "convolution", "hosts"],
    ["models", "methods", "data", "optim"],
    ["objective"],
    ["step", "dispatch"],
    ["parallel", "json_file", "lock", "logs", "picture", "build"],
    ["checkpoint"],
    ["feed", "fingerprint", "settings", "workdir"],
    ["teacher"],
    ["evaluate", "program"],
    ["train", "export", "plan"],
    ["main"],
    ["doctor"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def modules():
    for path in sorted((ROOT / "atkd_jax").rglob("*.py")):
        parts = path.relative_to(ROOT / "atkd_jax").with_suffix("").parts
        if parts != ("__init__",):
            yield path, parts[0]


def imports(path):
    """First part below `package` of everything a file imports from this repository."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            assert node.level == 0, f"{path} has a relative import"
            if len(module) == 1:
                yield from ([*module, alias.name] for alias in node.names)
            else:
                yield module


def test_every_module_has_a_floor():
    assert {name for _, name in modules()} == set(FLOOR_OF)


def test_imports_point_down():
    for path, own in modules():
        for parts in imports(path):
            assert parts[0] not in ("configs", "experiments", "tests"), f"{path}: {parts}"
            if parts[0] == "atkd_jax" and len(parts) > 1 and parts[1] != own:
                assert FLOOR_OF[parts[1]] < FLOOR_OF[own], f"{path} imports {'.'.join(parts)}"


def test_configs_import_only_each_other():
    for path in (ROOT / "configs").glob("*.py"):
        assert all(parts[0] in ("configs", "ml_collections", "difflib") for parts in imports(path))


def test_files_stay_short():
    for path in [*ROOT.glob("atkd_jax/**/*.py"), *ROOT.glob("experiments/*.py")]:
        assert len(path.read_text().splitlines()) <= 300, path


def test_no_trainer_needs_tensorflow():
    """TensorFlow is imported inside the functions that read prepared data, nowhere else."""
    for path, _ in modules():
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "tensorflow" not in ast.unparse(node), path
