"""A file imports only from floors below its own, so the package reads from the bottom up."""

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("atkd_jax", "configs", "experiments")
# Parts of atkd_jax. Those of one floor do not import each other.
FLOORS = [
    ["types", "errors", "cache"],
    ["ranges"],
    ["nn"],
    ["methods", "models", "data"],
    ["runtime"],
    ["command_line"],
    ["training"],
    ["export"],
    ["main"],
    ["doctor"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Commands that are kept beside what they command. No module imports them.
COMMANDS = ("atkd_jax.data.prepare", "atkd_jax.export.__main__")


def modules(package):
    """Dotted name -> path."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path):
    """Dotted names of everything a file imports, as far down as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_part_has_a_floor():
    parts = {name.split(".")[1] for name in modules("atkd_jax") if "." in name}
    assert parts == set(FLOOR_OF)


def test_imports_point_down():
    for name, path in modules("atkd_jax").items():
        if name == "atkd_jax":
            continue
        own = "main" if name in COMMANDS else name.split(".")[1]
        for imported in imports(path):
            package, *parts = imported.split(".")
            assert package not in ("configs", "experiments", "tests"), f"{path}: {imported}"
            assert not imported.startswith(COMMANDS), f"{path} imports {imported}"
            if package == "atkd_jax" and parts and parts[0] in FLOOR_OF and parts[0] != own:
                assert FLOOR_OF[parts[0]] < FLOOR_OF[own], f"{path} imports {imported}"


def test_no_module_imports_itself_through_others():
    known = {name: path for package in PACKAGES for name, path in modules(package).items()}
    graph = {}
    for name, path in known.items():
        graph[name] = set()
        for imported in imports(path):
            while imported not in known and "." in imported:
                imported = imported.rpartition(".")[0]
            if imported in known and imported != name:
                graph[name].add(imported)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_configs_import_only_what_has_defaults_for_them():
    """Each other, and the values of training: no command, no loop and no export."""
    allowed = ("configs", "ml_collections")
    for path in (ROOT / "configs").glob("*.py"):
        for name in imports(path):
            package, *parts = name.split(".")
            if package == "atkd_jax":
                assert FLOOR_OF[parts[0]] <= FLOOR_OF["training"], f"{path}: {name}"
                assert parts[:2] != ["training", "loop"], f"{path}: {name}"
            else:
                assert package in allowed, f"{path}: {name}"


def test_no_trainer_needs_tensorflow():
    """TensorFlow is imported inside the functions that read prepared data, nowhere else."""
    for path in modules("atkd_jax").values():
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "tensorflow" not in ast.unparse(node), path
