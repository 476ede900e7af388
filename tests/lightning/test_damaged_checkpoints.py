"""Checkpoints that are damaged, truncated, or lack something: each is refused with an error that names the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ofdft_norm import OFDFTDataModule
from ofdft_norm.errors import ConfigError, OFDFTNormError
from tests.lightning.conftest import Setting, TinyModel

DATA = "OFDFTDataModule"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole one."""
    folder = tmp_path_factory.mktemp("trained")
    Setting(folder).fit(folder / "run.ckpt", limit_train_batches=1, limit_val_batches=1)
    OFDFTDataModule.load_from_checkpoint(folder / "run.ckpt")
    TinyModel.load_from_checkpoint(folder / "run.ckpt")
    return folder / "run.ckpt"


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


def flipped(content: bytes) -> bytes:
    """One bit of a stored tensor: torch reads it as another number."""
    spoiled = bytearray(content)
    spoiled[len(content) // 2] ^= 64
    return bytes(spoiled)


BYTES: list[tuple[Callable[[bytes], bytes], str]] = [
    (cut(0), "is no checkpoint, or is truncated"),
    (cut(0.01), "is no checkpoint, or is truncated"),
    (cut(0.5), "is no checkpoint, or is truncated"),
    (cut(0.99), "is no checkpoint, or is truncated"),
    (lambda content: b"\0" * len(content), "is no checkpoint, or is truncated"),
    (lambda content: content[: len(content) // 2] + b"\0" * (len(content) // 2), "is no checkpoint, or is truncated"),
    (lambda content: b"state_dict: 1", "is no checkpoint, or is truncated"),
    (flipped, "does not match its checksum"),
]


@pytest.mark.parametrize("load", [OFDFTDataModule.load_from_checkpoint, TinyModel.load_from_checkpoint])
@pytest.mark.parametrize(("change", "words"), BYTES)
def test_damaged_files(
    checkpoint: Path, tmp_path: Path, change: Callable[[bytes], bytes], words: str, load: Callable[[Path], Any]
) -> None:
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(change(checkpoint.read_bytes()))
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}: .*{words}"):
        load(path)


# what is changed, by its keys; what it becomes, nothing meaning that it is left out; what the message names
KEYS: list[tuple[str, Any, str]] = [
    ("", [1], f"no state of {DATA}"),
    (DATA, None, f"no state of {DATA}"),
    (DATA, 3, "does not hold"),
    (f"{DATA}/arguments", None, "'arguments'"),
    (f"{DATA}/arguments/saved", None, "'saved'"),
    (f"{DATA}/arguments/saved/source/class", "Nobody", "Nobody"),
    (f"{DATA}/arguments/saved/source/content", None, "'content'"),
    (f"{DATA}/normalizer", None, "'normalizer'"),
    (f"{DATA}/normalizer", {}, "'reference'"),
    (f"{DATA}/normalizer", 3, "does not hold"),
    (f"{DATA}/normalizer/state_version", 99, "state version 99"),
    (f"{DATA}/normalizer/reference", None, "'reference'"),
    (f"{DATA}/normalizer/reference/kind", "Other", "'Other'"),
    (f"{DATA}/normalizer/reference/values", None, "'values'"),
    (f"{DATA}/normalizer/reference/values/t_z", None, "'t_z'"),
    (f"{DATA}/normalizer/reference/values/g_z", "abc", "does not hold"),
    (f"{DATA}/normalizer/rescaling/settings/s_grad", -1.0, "s_grad"),
    (f"{DATA}/normalizer/rescaling/values/coeff_stds", torch.ones(2), "coeff_stds has shape (2,)"),
    (f"{DATA}/normalizer/energy_scale", None, "'energy_scale'"),
    (f"{DATA}/normalizer/energy_scale", torch.tensor(0.0), "energy_scale"),
    (f"{DATA}/basis_info", None, "'basis_info'"),
    (f"{DATA}/basis_info", {"atomic_numbers": [1]}, "irreps_per_atom"),
    (f"{DATA}/split", None, "'split'"),
    (f"{DATA}/split", 3, "does not hold"),
    (f"{DATA}/statistics", None, "'statistics'"),
    (f"{DATA}/statistics", {}, "'arrays'"),
    (f"{DATA}/statistics/attributes", "{", "does not hold"),
    (f"{DATA}/fingerprint", None, "'fingerprint'"),
]


def write_changed(checkpoint: Path, path: Path, keys: str, value: Any) -> None:
    content = torch.load(checkpoint, weights_only=True)
    *parents, last = keys.split("/")
    inner = content
    for key in parents:
        inner = dict(inner["mapping"])[key] if key not in inner and "mapping" in inner else inner[key]
    if not last:
        content = value
    elif value is None:
        del inner[last]
    else:
        inner[last] = value
    torch.save(content, path)


@pytest.mark.parametrize(("keys", "value", "words"), KEYS)
def test_what_a_data_module_reads(checkpoint: Path, tmp_path: Path, keys: str, value: Any, words: str) -> None:
    path = tmp_path / "other.ckpt"
    write_changed(checkpoint, path, keys, value)
    with pytest.raises(OFDFTNormError, match=re.escape(str(path))) as refused:
        OFDFTDataModule.load_from_checkpoint(path)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("state_dict", "'state_dict'"),
        (f"{DATA}/normalizer/reference/values", "'values'"),
        (f"{DATA}/normalizer/energy_scale", "'energy_scale'"),
    ],
)
def test_what_a_model_reads(checkpoint: Path, tmp_path: Path, keys: str, words: str) -> None:
    path = tmp_path / "other.ckpt"
    write_changed(checkpoint, path, keys, None)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}: .*{words}"):
        TinyModel.load_from_checkpoint(path)


def test_a_trainer_that_tests_names_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    path, setting = tmp_path / "other.ckpt", Setting(tmp_path / "data")
    write_changed(checkpoint, path, f"{DATA}/normalizer", None)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}: .*'normalizer'"):
        setting.trainer().test(TinyModel(), setting.datamodule(), ckpt_path=str(path), verbose=False)
