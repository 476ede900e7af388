"""Public functions say what their arguments are and which of the package's errors they raise; Ruff checks the rest."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from ofdft_norm import errors
from tests.test_imports import MODULES, ROOT

ERRORS = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
CLASSES = {
    node.name: node
    for path in MODULES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ClassDef)
}


def _public(
    body: list[ast.stmt], of: ast.ClassDef | None = None
) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, of
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public(node.body, node)


def _decorators(function: ast.FunctionDef) -> str:
    return " ".join(map(ast.unparse, function.decorator_list))


def _overrides(function: ast.FunctionDef, of: ast.ClassDef | None) -> bool:
    """Whether a base of the package documents the method, or may: a base of another library."""
    for base in [] if of is None else of.bases:
        known = CLASSES.get(ast.unparse(base).split("[")[0].rpartition(".")[2])
        if known is None:
            if function.name in FOREIGN or function.name.startswith("on_"):
                return True
        elif function.name in {node.name for node in known.body if isinstance(node, ast.FunctionDef)}:
            return True
        if known is not None and _overrides(function, known):
            return True
    return False


def _arguments(function: ast.FunctionDef, of: ast.ClassDef | None) -> list[str]:
    own = of is not None and "staticmethod" not in _decorators(function)
    args = function.args
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)][own:]
    return names + [arg.arg for arg in (args.vararg, args.kwarg) if arg is not None]


def _raised(node: ast.AST) -> Iterator[str]:
    """Yields the names of what a function raises itself; functions inside of it speak for themselves."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            yield ast.unparse(child.exc.func).rpartition(".")[2]
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield from _raised(child)


# methods that Lightning, PyTorch and torchmetrics describe
FOREIGN = {
    "compute", "configure_optimizers", "finalize", "forward", "load_state_dict", "merge_state", "predict_dataloader",
    "predict_step", "reset", "set_extra_state", "setup", "state_dict", "sync", "teardown", "test_dataloader",
    "test_step", "train_dataloader", "training_step", "update", "val_dataloader", "validation_step",
}  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT / "ofdft_norm").as_posix())
def test_public_functions_describe_their_arguments_and_errors(path: Path) -> None:
    for function, of in _public(ast.parse(path.read_text()).body):
        if "overload" in _decorators(function) or ".setter" in _decorators(function) or _overrides(function, of):
            continue
        where, text = f"{path}:{function.lineno} {function.name}", ast.get_docstring(function) or ""
        assert not _arguments(function, of) or "Args:" in text, f"{where}: no Args"
        assert not ERRORS & set(_raised(function)) or "Raises:" in text, f"{where}: no Raises"
