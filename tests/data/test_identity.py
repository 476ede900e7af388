from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.transforms import Compose

from ofdft_norm import ConstantSampleWeigher, HasEnergyLabelSampleWeigher, ProjectGradient
from ofdft_norm.data.identity import identity

# A user's module, in which each case edits one line.
MODULE = """
import functools
import torch
from pathlib import Path

FACTOR = 2.0

def helper(x):
    return x * FACTOR

class Base:
    def scale(self):
        return 1.0

class Transform(Base):
    def __init__(self, fields=("coeffs",), scale=1.0, table=None):
        self.fields, self.factor, self.table = fields, scale, table

    def __call__(self, data):
        return helper(data)

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, dtype=torch.float64)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.zeros_(self.layer.bias)

class Slots:
    __slots__ = ("a",)
    def __init__(self, a):
        self.a = a
"""

# Objects, as expressions in the module's names.
OBJECTS = [
    "Transform()",
    "Transform",
    "Transform({'coeffs', 'gradient_label', 'energy_label', 'pos'})",
    "Transform(frozenset(['a', 'b']), 2.5, {'x': [1, 2], 'y': Path('a')})",
    "Transform(table=torch.arange(3.0))",
    "Transform(table=torch.tensor(1.0, dtype=torch.bfloat16))",
    "Network()",
    "Slots(3)",
    "helper",
    "functools.partial(helper, x=3)",
    "functools.partial(Transform, scale=2)",
    "Transform().scale",
    "[Transform(), helper]",
    "torch.relu",
    "torch.float64",
]
EDITS = [
    ("return x * FACTOR", "return x / FACTOR"),  # a helper
    ("FACTOR = 2.0", "FACTOR = 3.0"),  # a constant
    ("return 1.0", "return 2.0"),  # a base class
    ("return helper(data)", "return data"),  # the class itself
]
SCRIPT = """
def helper(x):
    return x

class Mine:
    pass

import importlib, json, sys
from ofdft_norm.data.identity import identity

found = []
for folder in json.loads(sys.argv[1]):
    sys.path.insert(0, folder)
    user_module = importlib.import_module("user_module")
    found.append([identity(eval(e, vars(user_module))) for e in json.loads(sys.argv[2])])
    del sys.modules["user_module"]
    sys.path.remove(folder)
print(json.dumps([found, [identity(helper), identity(Mine())]]))
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Identities of `OBJECTS` in the module and its edited versions, and of the script's own; from two processes."""
    place = tmp_path_factory.mktemp("modules")
    folders = []
    for i, text in enumerate([MODULE, *(MODULE.replace(old, new) for old, new in EDITS)]):
        folders.append(place / str(i))
        folders[-1].mkdir()
        (folders[-1] / "user_module.py").write_text(text)
    (place / "script.py").write_text(SCRIPT)
    arguments = [json.dumps([str(folder) for folder in folders]), json.dumps(OBJECTS)]
    command = [sys.executable, str(place / "script.py"), *arguments]
    outputs = [
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        for seed in ("1", "2")
    ]
    return [json.loads(output.stdout) for output in outputs]


def test_an_unchanged_object_is_the_same_in_two_processes(two_processes: list[Any]) -> None:
    assert two_processes[0] == two_processes[1]
    whole, own = two_processes[0][0][0], two_processes[0][1]
    assert None not in [*whole, *own]
    assert len(set(whole)) == len(OBJECTS)


@pytest.mark.parametrize("edit", range(len(EDITS)))
def test_an_edited_module_is_another_one(edit: int, two_processes: list[Any]) -> None:
    whole, edited = two_processes[0][0][0], two_processes[0][0][edit + 1]
    for expression, before, after in zip(OBJECTS, whole, edited, strict=True):
        assert (before == after) == (expression.partition(".")[0] == "torch"), expression


class Argument:
    """Holds its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def add(x: int, shift: int) -> int:
    return x + shift


DIFFERENT: list[tuple[Any, Any]] = [
    (1, 1.0),
    (1, True),
    (0.0, -0.0),
    ("1", 1),
    (None, "None"),
    ([1], (1,)),
    ({1}, frozenset({1})),
    (b"a", "a"),
    ({"a": 1}, {"a": 2}),
    (np.zeros(2), np.zeros((2, 1))),
    (np.zeros(2), np.zeros(2, dtype=np.float32)),
    (torch.zeros(2), np.zeros(2)),
    (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    (torch.tensor([1.00001]), torch.tensor([1.00002])),  # printed alike
    (Argument(1), Argument(2)),
    (Argument(1), Argument(x=1)),
    (Argument(Argument({1, 2})), Argument(Argument({1, 3}))),
    (functools.partial(add, 1), functools.partial(add, 2)),
    (functools.partial(add, 1), functools.partial(add, shift=1)),
    (ConstantSampleWeigher(0.1234567), ConstantSampleWeigher(0.1234568)),
    (ConstantSampleWeigher(), HasEnergyLabelSampleWeigher()),
    (ProjectGradient(), Compose([ProjectGradient()])),
    (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)),  # other weights
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_objects_have_different_identities(one: Any, other: Any) -> None:
    assert identity(one) == identity(one) is not None
    assert identity(one) != identity(other)


def test_equal_strings_need_not_be_one_object() -> None:
    word = "grad"
    assert identity([word, word]) == identity([word, "".join(["gr", "ad"])])


class Refusing:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def local_object() -> Any:
    class Local:
        pass

    return Local()


def shifted(shift: int) -> Callable[[int], int]:
    def apply(x: int) -> int:
        return x + shift

    return apply


def ring() -> Any:
    found = Argument()
    found.args = (found,)
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: Argument(threading.Lock()),
        lambda: Argument(x=open(__file__)),  # noqa: SIM115
        lambda: [1, (i for i in range(3))],
        lambda: lambda x: x + 1,
        lambda: shifted(1),
        lambda: Argument(shifted(1)),
        lambda: torch.zeros(2, device="meta"),
        lambda: np.array([local_object()]),
        Refusing,
        local_object,
        ring,
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_objects_that_another_process_cannot_recognise_have_none(make: Any) -> None:
    assert identity(make()) is None


def test_classes_and_functions_of_a_notebook_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = type(sys)("notebook_without_a_file")
    monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
    exec("class Transform:\n    pass\n\ndef apply(x):\n    return x\n", vars(notebook))
    for value in (notebook.Transform(), notebook.Transform, notebook.apply, Argument(notebook.apply)):
        assert identity(value) is None


def test_the_main_module_has_one_name_in_spawned_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(Argument(1))
    for name in ("__main__", "__mp_main__"):
        monkeypatch.setitem(sys.modules, name, sys.modules[__name__])
    monkeypatch.setattr(Argument, "__module__", "__main__")
    main = identity(Argument(1))
    monkeypatch.setattr(Argument, "__module__", "__mp_main__")
    assert identity(Argument(1)) == main != before
