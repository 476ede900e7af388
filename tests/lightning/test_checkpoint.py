"""A checkpoint holds the normaliser once; a run with a checkpoint never fits, and needs no training data."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import LightningModule
from torch import Tensor

from ofdft_norm import Normalizer, NormalizerMixin, OFDFTDataModule
from ofdft_norm.config import LinearReferencesConfig, RescalingConfig, SplitConfig
from ofdft_norm.errors import ConfigError, NormalizationError, OFDFTNormError, SplitError
from ofdft_norm.normalization.state import describe_difference, dump_normalizer
from ofdft_norm.statistics import fit_statistics
from tests.lightning.conftest import Setting, TinyModel

ENTRY = "model_normalizer._extra_state"


def same(a: Normalizer, b: Normalizer) -> bool:
    return describe_difference(dump_normalizer(a), dump_normalizer(b)) == ""


def member_names(datamodule: OFDFTDataModule) -> dict[str, list[str]]:
    """The label files of each part."""
    return {part: [path.name for path in datamodule.parts[part].paths] for part in datamodule.parts.names()}


@pytest.fixture
def no_fitting(monkeypatch) -> Callable[[], None]:
    """After its call, every fit fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("fitted again")

    return lambda: monkeypatch.setattr(fit_statistics, "fit_statistics", refuse)


# --- a run with a checkpoint ------------------------------------------------------------------------------------------


def test_a_run_with_a_checkpoint_uses_its_normalizer_without_training_data(setting, tmp_path, no_fitting):
    path = tmp_path / "run.ckpt"
    model, datamodule = setting.fit(path)
    normalizer = copy.deepcopy(datamodule.normalizer)
    [before] = setting.trainer().test(model, datamodule=datamodule, verbose=False)
    members, train_files = member_names(datamodule), list(datamodule.parts["train"].paths)

    shutil.rmtree(tmp_path / "cache")
    for file in train_files:
        Path(file).unlink()
    no_fitting()

    for call in ("test", "validate", "predict"):
        fresh, trainer = setting.datamodule(), setting.trainer()
        options = {} if call == "predict" else {"verbose": False}
        result = getattr(trainer, call)(type(model)(), datamodule=fresh, ckpt_path=str(path), **options)
        assert same(fresh.normalizer, normalizer)
        assert same(trainer.lightning_module.normalizer, normalizer)
        assert fresh.fingerprint == datamodule.fingerprint
        for key, value in datamodule.statistics.to_arrays().items():
            np.testing.assert_array_equal(fresh.statistics.to_arrays()[key], value)
        if call == "test":
            assert result == [before]
            assert [path.name for path in fresh.parts["test"].paths] == members["test"]

    loaded = OFDFTDataModule.load_from_checkpoint(path)
    assert same(loaded.normalizer, normalizer)
    assert loaded.source == datamodule.source
    assert loaded.batch_size == datamodule.batch_size
    assert setting.trainer().test(type(model).load_from_checkpoint(path), datamodule=loaded, verbose=False) == [before]
    # a model with a normaliser and a data module without a checkpoint
    rest = setting.datamodule(split=SplitConfig(train=0, val=1, test=0))
    assert setting.trainer().validate(type(model).load_from_checkpoint(path), datamodule=rest, verbose=False)
    assert same(rest.normalizer, normalizer)
    with pytest.raises(SplitError, match="train split"):
        loaded.train_dataloader()
    # a model without any data
    batch = next(iter(rest.val_dataloader()))
    expected = normalizer.denormalize_energy(batch.energy_label.double(), batch)
    shutil.rmtree(setting.labels)
    alone = type(model).load_from_checkpoint(path, weights_only=True).normalizer
    assert torch.equal(alone.denormalize_energy(batch.energy_label.double(), batch), expected)


def test_the_next_run_starts_from_the_configuration(setting, tmp_path):
    """A data module that tested another model's normaliser trains a new model with its own."""
    _, other = setting.fit(tmp_path / "run.ckpt", setting.datamodule(energy_scale=3.0), limit_train_batches=1)
    datamodule, model = setting.datamodule(), TinyModel.load_from_checkpoint(tmp_path / "run.ckpt")
    datamodule.setup("fit")
    with pytest.warns(UserWarning, match=r"model's normaliser differs from the configured one.*energy_scale"):
        setting.trainer().test(model, datamodule, verbose=False)
    assert same(datamodule.normalizer, other.normalizer)
    model = TinyModel()
    setting.trainer(limit_train_batches=1).fit(model, datamodule)
    assert float(model.normalizer.energy_scale) == 1.0
    with pytest.warns(UserWarning, match=r"checkpoint's normaliser differs from the configured one.*energy_scale"):
        setting.trainer().test(TinyModel(), datamodule, ckpt_path=str(tmp_path / "run.ckpt"), verbose=False)
    setting.trainer(limit_train_batches=1).fit(model := TinyModel(), datamodule)
    assert float(model.normalizer.energy_scale) == 1.0


def test_a_trained_model_that_never_read_its_normalizer_keeps_it(setting):
    model = TinyModel()
    setting.trainer(limit_train_batches=1, limit_val_batches=0).fit(model, setting.datamodule(energy_scale=3.0))
    with pytest.warns(UserWarning, match=r"model's normaliser differs.*energy_scale: 1\.0 against 3\.0"):
        setting.trainer().test(model, setting.datamodule(), verbose=False)
    assert float(model.normalizer.energy_scale) == 3.0


class Subclass(OFDFTDataModule):
    """Lightning stores a data module's state under its class's name."""


class Plain(LightningModule):
    """A model without the mixin."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(361))

    training_step, forward, loss = TinyModel.training_step, TinyModel.forward, TinyModel.loss
    losses: ClassVar[list[float]] = []
    dtypes: ClassVar[set[Any]] = set()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Lightning wants one."""

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def test_a_subclass_of_the_data_module_and_a_model_without_mixin_find_the_normalizer(setting, tmp_path, no_fitting):
    path = str(tmp_path / "run.ckpt")
    datamodule, trainer = setting.datamodule(), setting.trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(Plain(), datamodule)
    trainer.save_checkpoint(path)
    no_fitting()
    other = setting.datamodule(kind=Subclass)
    setting.trainer().test(Plain(), other, ckpt_path=path, verbose=False)
    assert same(other.normalizer, datamodule.normalizer)
    assert same(Subclass.load_from_checkpoint(path).normalizer, datamodule.normalizer)
    # a checkpoint without any normaliser is refused: the labels of a test are no training labels
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["OFDFTDataModule"]
    torch.save(checkpoint, path)
    with pytest.raises(ConfigError, match="has no normaliser"):
        setting.trainer().test(Plain(), setting.datamodule(), ckpt_path=path, verbose=False)


class Asking(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.normalizer.energy_scale


def test_a_model_without_mixin_that_asks_for_its_normalizer_gets_help(setting):
    with pytest.raises(AttributeError) as raised:
        setting.trainer(num_sanity_val_steps=0).fit(Asking(), setting.datamodule())
    assert any("NormalizerMixin" in note for note in raised.value.__notes__)


# --- content of a checkpoint ------------------------------------------------------------------------------------------


def count_keys(value: Any, name: str) -> int:
    """Number of mappings within a checkpoint that have a key."""
    if isinstance(value, dict):
        return (name in value) + sum(count_keys(v, name) for v in value.values())
    return sum(count_keys(v, name) for v in value) if isinstance(value, list | tuple) else 0


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_holds_normalizer_and_basis_once(setting, tmp_path, weights_only):
    path = tmp_path / "run.ckpt"
    model, datamodule, trainer = TinyModel(), setting.datamodule(), setting.trainer(limit_train_batches=1)
    trainer.fit(model, datamodule)
    trainer.save_checkpoint(path, weights_only)
    checkpoint = torch.load(path, weights_only=True)
    assert count_keys(checkpoint, "energy_scale") - ("energy_scale" in str(checkpoint.get("OFDFTDataModule"))) <= 1
    assert count_keys(checkpoint, "irreps_per_atom") == 1
    assert describe_difference(checkpoint["state_dict"][ENTRY], dump_normalizer(datamodule.normalizer)) == ""
    assert checkpoint["OFDFTDataModule"]["normalizer"] is None
    assert path.stat().st_size < 2**19
    assert same(TinyModel.load_from_checkpoint(path).normalizer, datamodule.normalizer)
    assert same(OFDFTDataModule.load_from_checkpoint(path).normalizer, datamodule.normalizer)
    alone = TinyModel()
    alone.load_state_dict(model.state_dict())
    assert same(alone.normalizer, datamodule.normalizer)


def test_settings_and_batches_of_a_checkpoint_are_those_of_its_run(setting, tmp_path):
    path = tmp_path / "run.ckpt"
    options: dict[str, Any] = {"energy_scale": "std", "unseen_elements": "identity"}
    options["reference"] = LinearReferencesConfig(values={"H": -0.5, "C": -38, "N": -54, "O": -75})
    options["rescaling"] = RescalingConfig(equivariant=True, s_coeff=20, s_grad=0.2)
    _, fitted = setting.fit(path, setting.datamodule(**options), limit_train_batches=1, limit_val_batches=0)
    loaded = OFDFTDataModule.load_from_checkpoint(path)
    assert loaded.settings == fitted.settings
    a, b = next(iter(loaded.test_dataloader())), next(iter(fitted.test_dataloader()))
    for field in a.keys():
        assert torch.equal(a[field], b[field]) if isinstance(a[field], Tensor) else a[field] == b[field]


# --- contradictions between checkpoint and configuration --------------------------------------------------------------


def test_the_checkpoint_wins_and_a_warning_names_the_difference(setting, tmp_path):
    path = tmp_path / "run.ckpt"
    _, trained = setting.fit(path, limit_train_batches=1, limit_val_batches=0)
    other = setting.datamodule(split=SplitConfig(train=0.66, val=0.17, test=0.17, seed=1), energy_scale=3.0)
    other.setup("fit")
    with pytest.warns(UserWarning, match=r"normaliser differs.*energy_scale.*coeff_biases"):
        setting.trainer().test(TinyModel(), datamodule=other, ckpt_path=str(path), verbose=False)
    assert same(other.normalizer, trained.normalizer)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"energy_scale": 3.0}, r"energy_scale: 3\.0 against 1\.0"),
        ({"reference": None}, r"reference: None against Atom"),
        ({"rescaling": RescalingConfig(s_grad=0.1)}, r"s_grad=0\.1.* against .*s_grad=0\.05"),
        ({"unseen_elements": "identity"}, "unseen_elements: identity against error"),
    ]
    for options, message in changes:
        with pytest.warns(UserWarning, match=f"checkpoint's normaliser differs.*{message}"):
            loaded = OFDFTDataModule.load_from_checkpoint(path, **options)
        assert same(loaded.normalizer, trained.normalizer)


class Scale:
    """A pre-transform without its arguments in its repr."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, sample: Any) -> Any:
        sample.energy_label = sample.energy_label * self.factor
        return sample

    def __repr__(self) -> str:
        return "Scale()"


def test_checkpoints_of_other_labels_are_refused(setting, tmp_path):
    path = tmp_path / "run.ckpt"
    setting.fit(path, setting.datamodule(pre_transforms=[Scale(2)]), limit_train_batches=1)
    with pytest.raises(ConfigError, match=r"arguments \['pre_transforms'\].*pass them to load_from_checkpoint"):
        OFDFTDataModule.load_from_checkpoint(path)
    assert OFDFTDataModule.load_from_checkpoint(path, pre_transforms=[Scale(2)]).has_normalizer
    with pytest.raises(ConfigError, match=r"other labels.*pre_transforms"):
        OFDFTDataModule.load_from_checkpoint(path, pre_transforms=[Scale(3)])
    other = setting.source(energy_key="e_kin_plus_xc", gradient_key="grad_kin_plus_xc")
    changes = {"source": other, "unit": "eV"}
    for name, message in (("source", "energy_key = 'e_kin' there, 'e_kin_plus_xc'"), ("unit", "'hartree' there, 'eV'")):
        with pytest.raises(ConfigError, match=f"other labels.*{message} here"):
            OFDFTDataModule.load_from_checkpoint(path, pre_transforms=[Scale(2)], **{name: changes[name]})


def test_labels_that_changed_are_noticed(setting, tmp_path):
    datamodule = setting.datamodule()
    datamodule.setup("fit")
    first, fingerprint = datamodule.normalizer, datamodule.fingerprint
    datamodule.setup("fit")
    assert datamodule.normalizer is first
    setting.fit(tmp_path / "run.ckpt", limit_train_batches=1)
    file = setting.labels / member_names(datamodule)["train"][0]
    setting.change_label(file)
    with pytest.warns(UserWarning, match="training labels have changed since the normaliser was fitted"):
        datamodule.setup("fit")
    assert datamodule.fingerprint != fingerprint
    assert not same(datamodule.normalizer, first)
    with pytest.warns(UserWarning, match="training labels have changed since the checkpoint was written"):
        setting.trainer(max_epochs=2, limit_train_batches=1).fit(
            TinyModel(), setting.datamodule(), ckpt_path=str(tmp_path / "run.ckpt")
        )


def test_labels_in_another_basis_than_the_checkpoints_are_refused(setting, tmp_path):
    path = tmp_path / "run.ckpt"
    setting.fit(path, limit_train_batches=1, limit_val_batches=0)
    basis = json.loads(Path(setting.basis_info).read_text())
    basis["irreps_per_atom"][0], basis["exponents_per_atom"] = "2x0e", None
    (tmp_path / "basis.json").write_text(json.dumps(basis))
    setting.basis_info = str(tmp_path / "basis.json")
    with pytest.raises(ConfigError, match=r"belongs to .* but the labels have"):
        OFDFTDataModule.load_from_checkpoint(path, source=setting.source()).test_dataloader()


# --- damaged and foreign checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint of a model with the mixin."""
    folder = tmp_path_factory.mktemp("trained")
    Setting(folder).fit(folder / "run.ckpt", limit_train_batches=1, limit_val_batches=1)
    return folder / "run.ckpt"


def flip(content: bytes) -> bytes:
    """Changes one bit of a stored tensor: torch reads it as another number."""
    spoiled = bytearray(content)
    spoiled[len(content) // 2] ^= 64
    return bytes(spoiled)


@pytest.mark.parametrize("load", [OFDFTDataModule.load_from_checkpoint, TinyModel.load_from_checkpoint])
@pytest.mark.parametrize("change", [lambda c: c[:0], lambda c: c[: len(c) // 2], lambda c: b"state_dict: 1", flip])
def test_damaged_files_are_named(whole, tmp_path, change, load):
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(change(whole.read_bytes()))
    with pytest.raises(ConfigError, match=str(path)):
        load(path)


# entry by its keys; its new value, None to leave it out; a word of the message
DATA, MODEL = "OFDFTDataModule", f"state_dict/{ENTRY}"
CHANGES: list[tuple[str, Any, str]] = [
    (DATA, None, "no state"),
    (DATA, 3, "no state"),
    (f"{DATA}/version", 1, "not compatible"),
    (f"{DATA}/arguments", None, "arguments"),
    (f"{DATA}/arguments/saved/source/class", "Nobody", "Nobody"),
    (f"{DATA}/arguments/saved/source/module", "subprocess", "subprocess"),
    (f"{DATA}/statistics", {}, "missing"),
    (MODEL, {}, "no state"),
    (f"{MODEL}/version", 99, "cannot read"),
    (f"{MODEL}/parts", None, "parts"),
    (f"{MODEL}/parts/reference/class", "os.system", "os.system"),
]


@pytest.mark.parametrize(("keys", "value", "word"), CHANGES)
def test_missing_and_wrong_entries_are_named(whole, tmp_path, keys, value, word):
    content = torch.load(whole, weights_only=True)
    *parents, last = keys.split("/")
    inner = content
    for key in parents:
        inner = dict(inner["mapping"])[key] if key not in inner and "mapping" in inner else inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    torch.save(content, tmp_path / "other.ckpt")
    for cls in (OFDFTDataModule, TinyModel) if last == "version" else (OFDFTDataModule,):
        with pytest.raises(OFDFTNormError, match=word) as refused:
            cls.load_from_checkpoint(tmp_path / "other.ckpt")
        assert str(tmp_path / "other.ckpt") in str(refused.value)


# --- the mixin --------------------------------------------------------------------------------------------------------


def test_the_mixin_stands_before_the_module_among_the_bases():
    with pytest.raises(TypeError, match=r"class Wrong\(NormalizerMixin, LightningModule\)"):
        type("Wrong", (LightningModule, NormalizerMixin), {})
    assert type("Right", (NormalizerMixin, LightningModule), {})
    assert type("Derived", (TinyModel,), {})


def test_a_model_without_any_normalizer_names_the_remedies():
    model = TinyModel()
    with pytest.raises(NormalizationError, match="load a checkpoint with one, train it with"):
        _ = model.normalizer
    model.normalizer = Normalizer(energy_scale=3.0)
    assert same(copy.deepcopy(model).normalizer, model.normalizer)
    assert model.to(torch.bfloat16).normalizer.energy_scale.dtype == torch.float64
