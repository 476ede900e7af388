"""The packages' names are there, but imported late."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ofdft_norm
import ofdft_norm.config

ROOT = Path(__file__).parents[1]
LAZY = [ofdft_norm, ofdft_norm.config]


@pytest.mark.parametrize("package", LAZY)
def test_every_name_is_what_its_module_has(package: object) -> None:
    for name in package._MODULES:  # type: ignore[attr-defined]
        value = getattr(package, name)
        assert value is vars(importlib.import_module(f"ofdft_norm.{package._MODULES[name]}"))[name]  # type: ignore[attr-defined]
        assert name in dir(package)
    with pytest.raises(AttributeError, match=r"module 'ofdft_norm.*' has no attribute 'Nothing'"):
        _ = package.Nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_the_same_names(package: object) -> None:
    tree = ast.parse(Path(package.__file__).read_text())  # type: ignore[attr-defined]
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = package._MODULES  # type: ignore[attr-defined]
    assert seen == {name: f"ofdft_norm.{module}.{name}" for name, module in table.items()}


def test_neither_the_package_nor_the_command_lines_import_torch() -> None:
    modules = "import sys, runpy; " + "; ".join(
        f"runpy.run_path({str(ROOT / 'scripts' / script)!r}, run_name='script')"
        for script in ("train.py", "predict.py", "fit_statistics.py")
    )
    code = f"import ofdft_norm; {modules}; print(sorted({{'torch', 'lightning', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"
