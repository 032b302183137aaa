"""The package's structure: what imports what, and what everybody may import."""

import ast
import os
import re
from pathlib import Path

import pytest

import sb3_bn_ddpg

PACKAGE = Path(sb3_bn_ddpg.__file__).parent
FLOORS = [
    ["common", "version"],
    ["networks"],
    ["fast", "export", "pixels"],
    ["saving"],
    ["critic_step", "datasets"],
    ["off_policy", "deterministic"],
    ["ddpg", "td3", "sac", "offline"],
    ["profiles"],
    ["zoo"],
    ["__init__"],
    ["cli"],
    ["__main__"],
]
"""From the bottom up: a folder or file imports only what lies below it, and what is in the same folder."""
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """The folder or file that a module of the package is in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_by(file: Path) -> set[str]:
    """The modules of the package that a file imports anywhere, those for type checkers included."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sb3_bn_ddpg"):
            for alias in node.names:
                as_module = PACKAGE.parent.joinpath(*f"{node.module}.{alias.name}".split("."))
                is_module = as_module.with_suffix(".py").exists() or as_module.is_dir()
                modules.add(f"{node.module}.{alias.name}" if is_module else str(node.module))
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.startswith("sb3_bn_ddpg")}
    return modules


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported_by(file):
        other = room_of(module)
        assert other == own or FLOOR_OF[other] < FLOOR_OF[own], f"{own} imports {module}"


def test_no_files_import_each_other():
    graph = {module_of(file).removesuffix(".__init__"): imported_by(file) for file in FILES}

    def leads_to(start: str) -> set[str]:
        reached, waiting = set(), [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - reached
            reached |= new
            waiting += new
        return reached

    assert len(graph) > 40
    assert [module for module in graph if module in leads_to(module)] == []


def test_the_rule_sees_what_points_up(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("def f():\n    from sb3_bn_ddpg.zoo import search\n    import sb3_bn_ddpg.ddpg.step\n")
    assert imported_by(file) == {"sb3_bn_ddpg.zoo.search", "sb3_bn_ddpg.ddpg.step"}


def test_only_the_table_names_algorithms():
    """RL Zoo's part, the command line and files work with any algorithm: none of them names one."""
    pytest.importorskip("rl_zoo3")
    from sb3_bn_ddpg import zoo

    names = {name for algo, row in zoo.ALGORITHMS.items() for name in (algo, row.algorithm.__name__)}
    named = re.compile(rf"(?<!\w)({'|'.join(names)})(?!\w)", re.IGNORECASE)
    table = {PACKAGE / "profiles" / "algorithms.py", PACKAGE / "zoo" / "algorithms.py", PACKAGE / "zoo" / "search_space.py"}
    folders = ("profiles", "saving", "zoo")
    files = {PACKAGE / "cli.py", *(file for folder in folders for file in (PACKAGE / folder).glob("*.py"))} - table
    assert len(files) > 15
    assert named.search('help="bn_ddpg only"')
    found = {file.name: match for file in files if (match := named.search(file.read_text()))}
    assert found == {}


def test_public_names():
    for name in sb3_bn_ddpg.__all__:
        assert getattr(sb3_bn_ddpg, name) is not None
    errors = {name for name in sb3_bn_ddpg.__all__ if name.endswith("Error")}
    assert errors == {"EnvironmentFailureError", "FileError"}


@pytest.mark.xdist_group("one process")
def test_what_belongs_to_one_process_stays_in_it(request):
    """As pytest-xdist sees by the name. Else each process would compile and prepare everything, also for the others."""
    if "PYTEST_XDIST_WORKER" not in os.environ or not request.config.getoption("loadgroup"):
        pytest.skip("tests are not shared out by group")
    assert request.node.nodeid.endswith("@one process")
