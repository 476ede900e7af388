"""Imports run one way, layer by layer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "ofdft_norm").rglob("*.py") if "_hydra" not in path.parts)

# a module imports its own layer and those before it; every other module directly under ofdft_norm/, such as the data
# module and the mixin, is of the layer "datamodule"
LAYERS = {
    "errors": 0,
    "settings": 0,
    "version": 0,
    "tables": 0,
    "lazy": 0,
    "units": 0,
    "data": 1,
    "transforms": 2,
    "labelling": 2,
    "statistics": 3,
    "normalization": 4,
    "config": 5,
    "datamodule": 5,
    "example": 6,
    "report": 7,
    "benchmarks": 7,
    "commands": 8,
    "guide": 9,
    "scripts": 9,
}
APART_FROM_HYDRA_AND_TRAINER = {"data", "transforms", "labelling", "statistics", "normalization"}


def layer(module: str) -> str:
    """The layer of a module's dotted name."""
    first, *rest = module.split(".")
    if first == "scripts":
        return first
    return rest[0] if rest and rest[0] in LAYERS else "datamodule"


def dotted_name(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a module imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "scripts").rglob("*.py"))], ids=dotted_name)
def test_a_module_imports_only_layers_before_its_own(path: Path) -> None:
    module = dotted_name(path)
    for imported in imports(path):
        if imported.startswith("ofdft_norm"):
            own, other = layer(module), layer(imported)
            assert LAYERS[other] <= LAYERS[own], f"{module} ({own}) imports {imported} ({other})"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if layer(dotted_name(path)) in APART_FROM_HYDRA_AND_TRAINER], ids=dotted_name
)
def test_fitting_and_normalising_need_neither_hydra_nor_a_trainer(path: Path) -> None:
    roots = {imported.split(".")[0] for imported in imports(path)}
    assert not roots & {"hydra", "lightning", "pytorch_lightning"}
