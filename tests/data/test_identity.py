import functools
import json
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.transforms import Compose

from ofdft_norm import ConstantSampleWeigher, ProjectGradient
from ofdft_norm.data.identity import identify
from tests import processes

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
    "Transform(table=torch.tensor(1.0, dtype=torch.bfloat16))",
    "Slots(3)",
    "helper",
    "functools.partial(helper, x=3)",
    "functools.partial(Transform, scale=2)",
    "Transform().scale",
    "torch.relu",
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

import importlib, json, sys
from ofdft_norm.data.identity import identify

found = []
for folder in json.loads(sys.argv[1]):
    sys.path.insert(0, folder)
    user_module = importlib.import_module("user_module")
    found.append([identify(eval(e, vars(user_module))) for e in json.loads(sys.argv[2])])
    del sys.modules["user_module"]
    sys.path.remove(folder)
print(json.dumps([[*found[0], identify(helper)], found[1:]]))
"""


def test_an_object_is_the_same_in_two_processes_until_its_module_is_edited(tmp_path: Any) -> None:
    folders = []
    for i, text in enumerate([MODULE, *(MODULE.replace(old, new) for old, new in EDITS)]):
        folders.append(str(tmp_path / str(i)))
        os.mkdir(folders[-1])
        (tmp_path / str(i) / "user_module.py").write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [str(tmp_path / "script.py"), json.dumps(folders), json.dumps(OBJECTS)]
    forked = processes.in_new_process(functools.partial(processes.run_script, folder=tmp_path), *arguments)
    # strings have other hashes in a process with this seed, and sets of strings another order
    other = subprocess.check_output([sys.executable, *arguments], env={**os.environ, "PYTHONHASHSEED": "1"}, text=True)
    assert forked == other
    whole, edited = json.loads(other)
    assert None not in whole
    assert len(set(whole)) == len(OBJECTS) + 1
    for identities in edited:
        for expression, before, after in zip(OBJECTS, whole[:-1], identities, strict=True):
            assert (before == after) == (expression == "torch.relu"), expression


class Argument:
    """Holds its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def add(x: int, shift: int) -> int:
    return x + shift


DIFFERENT: list[tuple[Any, Any]] = [
    (1, True),
    (0.0, -0.0),
    ({1}, frozenset({1})),
    (np.zeros(2), np.zeros(2, dtype=np.float32)),
    (torch.zeros(2), np.zeros(2)),
    (torch.tensor([1.00001]), torch.tensor([1.00002])),  # printed alike
    (Argument(1), Argument(x=1)),
    (Argument(Argument({1, 2})), Argument(Argument({1, 3}))),
    (ConstantSampleWeigher(0.1234567), ConstantSampleWeigher(0.1234568)),
    (ProjectGradient(), Compose([ProjectGradient()])),
    (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)),  # other weights
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_objects_have_different_identities(one: Any, other: Any) -> None:
    assert identify(one) == identify(one) is not None
    assert identify(["grad", "grad"]) == identify(["grad", "".join(["gr", "ad"])])
    assert identify(one) != identify(other)


def local_object() -> Any:
    class Local:
        pass

    return Local()


def ring() -> Any:
    found = Argument()
    found.args = (found,)
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: Argument(threading.Lock()),
        lambda: lambda x: x + 1,
        lambda: np.array([local_object()]),
        local_object,
        ring,
    ],
)
def test_objects_that_another_process_cannot_recognise_have_none(make: Any) -> None:
    assert identify(make()) is None


def test_classes_and_functions_of_a_notebook_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = type(sys)("notebook_without_a_file")
    monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
    exec("class Transform:\n    pass\n\ndef apply(x):\n    return x\n", vars(notebook))
    for value in (notebook.Transform(), notebook.Transform, notebook.apply, Argument(notebook.apply)):
        assert identify(value) is None


def test_the_main_module_has_one_name_in_spawned_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify(Argument(1))
    for name in ("__main__", "__mp_main__"):
        monkeypatch.setitem(sys.modules, name, sys.modules[__name__])
    monkeypatch.setattr(Argument, "__module__", "__main__")
    main = identify(Argument(1))
    monkeypatch.setattr(Argument, "__module__", "__mp_main__")
    assert identify(Argument(1)) == main != before
