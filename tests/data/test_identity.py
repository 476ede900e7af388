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
from ofdft_norm.data.identity import NoIdentityError, identity

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

def make(shift):
    def apply(x):
        return x + shift
    return apply

double = lambda x: 2 * x if x in {"a", "b", "c"} else x
triple = lambda x: 3 * x if x in {"a", "b", "c"} else x
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
    "make(3)",
    "double",
    "functools.partial(helper, x=3)",
    "functools.partial(Transform, scale=2)",
    "Transform().scale",
    "[Transform(), helper]",
    "torch.relu",
    "torch.float64",
    "torch",
]


EDITS = [
    ("return x * FACTOR", "return x / FACTOR"),  # a helper
    ("FACTOR = 2.0", "FACTOR = 3.0"),  # a constant
    ("return 1.0", "return 2.0"),  # a base class
    ("return helper(data)", "return data"),  # the class itself
]

SCRIPT = """
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

OWN = """
def helper(x):
    return x

class Mine:
    pass
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
    (place / "script.py").write_text(OWN + SCRIPT)
    arguments = [json.dumps([str(folder) for folder in folders]), json.dumps(OBJECTS)]
    command = [sys.executable, str(place / "script.py"), *arguments]
    outputs = [
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        for seed in ("1", "2")
    ]
    return [json.loads(output.stdout) for output in outputs]


def test_an_unchanged_object_is_the_same_in_two_processes(two_processes: list[Any]) -> None:
    assert two_processes[0] == two_processes[1]
    whole = two_processes[0][0][0]
    assert len({json.dumps(i) for i in whole}) == len(OBJECTS)


@pytest.mark.parametrize("edit", range(len(EDITS)))
def test_an_edited_module_is_another_one(edit: int, two_processes: list[Any]) -> None:
    whole, edited = two_processes[0][0][0], two_processes[0][0][edit + 1]
    for expression, before, after in zip(OBJECTS, whole, edited, strict=True):
        assert (before == after) == (expression.partition(".")[0] == "torch"), expression


class Argument:
    """Holds what it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def add(x: int, shift: int) -> int:
    return x + shift


def shifted(shift: int) -> Callable[[int], int]:
    return lambda x: x + shift


DIFFERENT: list[tuple[Any, Any]] = [
    (1, 1.0),
    (1, True),
    (0.0, -0.0),
    (0.1, 0.1 + 1e-17 * 2),
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
    (torch.zeros(2), -torch.zeros(2)),
    (Argument(1), Argument(2)),
    (Argument(1), Argument(x=1)),
    (Argument(Argument({1, 2})), Argument(Argument({1, 3}))),
    (functools.partial(add, 1), functools.partial(add, 2)),
    (functools.partial(add, 1), functools.partial(add, shift=1)),
    (shifted(1), shifted(2)),
    (lambda x: x + 1, lambda x: x + 2),
    (ConstantSampleWeigher(0.1234567), ConstantSampleWeigher(0.1234568)),
    (ConstantSampleWeigher(), HasEnergyLabelSampleWeigher()),
    (ProjectGradient(), Compose([ProjectGradient()])),
    (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)),  # other weights
    (Argument(1).__init__, Argument(2).__init__),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_objects_have_different_identities(one: Any, other: Any) -> None:
    assert identity(one) == identity(one)
    if not (isinstance(one, float) and one == other and str(one) == str(other)):
        assert identity(one) != identity(other)
    json.dumps(identity(one))


def test_objects_that_hold_themselves() -> None:
    knot: list[Any] = []
    knot.append(knot)
    ring = Argument()
    ring.args = (ring,)
    assert identity(knot) == identity(knot)
    assert identity(ring) == identity(ring)


def test_attributes_count_whatever_the_order_in_which_they_were_set() -> None:
    one, other = Argument(), Argument()
    one.a, one.b = 1, 2  # type: ignore[attr-defined]
    other.b, other.a = 2, 1  # type: ignore[attr-defined]
    assert identity(one) == identity(other)


class Refusing:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def local_object() -> Any:
    class Local:
        pass

    return Local()


NONE = [
    (lambda: Argument(threading.Lock()), r"Argument\.args\[0\] is a lock"),
    (lambda: Argument(x=open(__file__)), r"Argument\.kwargs\['x'\] is a TextIOWrapper"),  # noqa: SIM115
    (lambda: [1, (i for i in range(3))], r"list\[1\] is a generator"),
    (Refusing, "Refusing.*not me"),
    (local_object, "Local is defined inside a function"),
    (lambda: torch.zeros(2, device="meta"), "without values"),
    (lambda: np.array([object()]), "array of Python objects"),
]


@pytest.mark.parametrize(("make", "words"), NONE)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_what_cannot_be_identified_says_what_is_in_the_way(make: Any, words: str) -> None:
    with pytest.raises(NoIdentityError, match=words):
        identity(make())


def test_classes_and_functions_of_a_notebook_have_no_identity() -> None:
    notebook: dict[str, Any] = {"__name__": "notebook_without_a_file"}
    exec("class Transform:\n    pass\n\ndef apply(x):\n    return x\n", notebook)
    for value in (notebook["Transform"](), notebook["Transform"], notebook["apply"], Argument(notebook["apply"])):
        with pytest.raises(NoIdentityError, match="'notebook_without_a_file' has no source file, as in a notebook"):
            identity(value)


def test_the_main_module_has_one_name_in_spawned_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(Argument(1))
    monkeypatch.setattr(Argument, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__mp_main__", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[__name__])
    main = identity(Argument(1))
    monkeypatch.setattr(Argument, "__module__", "__mp_main__")
    assert identity(Argument(1)) == main != before


def test_the_package_s_own_code_counts_by_name_alone() -> None:
    assert "ofdft_norm.statistics.sample_weighers" in json.dumps(identity(ConstantSampleWeigher(2)))
    names = [entry for entry in identity(ConstantSampleWeigher(2))[1][1] if entry[0].startswith("ofdft_norm.")]
    assert names
    assert all(digest == "" for _, digest in names)
