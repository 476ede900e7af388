"""Packages import only from those below them; imports for type annotations alone do not count."""

import ast
from pathlib import Path

import ofdft_norm

PACKAGE = Path(ofdft_norm.__file__).parent
ORDER = (  # the lowest first; names of one line do not import each other
    *("errors", "settings units tables", "data", "transforms", "labelling", "statistics", "normalization"),
    *("config", "checkpoint", "mixin", "datamodule", "ofdft_norm", "example hydra_app", "cli"),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names.split()}


def imports(node: ast.AST) -> set[str]:
    """Modules that the code below a node imports."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return set()
    if isinstance(node, ast.ImportFrom) and node.module == "ofdft_norm":
        return {f"ofdft_norm.{alias.name}" for alias in node.names if alias.name in LEVEL} or {"ofdft_norm"}
    own = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    own += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return set(own).union(*map(imports, ast.iter_child_nodes(node)))


def test_modules_import_only_what_is_below_them():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        names = [name.split(".") for name in imports(ast.parse(path.read_text()))]
        found = {(parts[1:] or parts)[0] for parts in names if parts[0] == "ofdft_norm"} - {room}
        wrong += [f"{path} imports {name}" for name in found if room in LEVEL and LEVEL[name] >= LEVEL[room]]
    assert wrong == []
