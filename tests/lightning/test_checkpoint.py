"""Checkpoints hold the normaliser; it is never refitted, and needs no training data."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm import (
    BasisInfo,
    DimensionWiseRescaling,
    LinearReferences,
    Normalizer,
    NormalizerMixin,
    OFDFTDataModule,
)
from ofdft_norm.config import (
    AtomRefConfig,
    EmbeddedLabels,
    LinearReferencesConfig,
    RescalingConfig,
    SplitConfig,
    StatisticsConfig,
)
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.raw_datasets import _unlike, files_to_state
from ofdft_norm.errors import ConfigError, NormalizationError, SplitError
from ofdft_norm.normalization.normalizer_state import describe_difference, normalizer_to_state
from ofdft_norm.statistics import fit as statistics_fit
from tests.lightning.conftest import TinyModel
from tests.processes import in_new_process


def same(a: Normalizer, b: Normalizer) -> bool:
    return describe_difference(normalizer_to_state(a), normalizer_to_state(b)) == ""


@pytest.fixture
def no_fitting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and every fit from then on fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("fitted again")

    return lambda: monkeypatch.setattr(statistics_fit, "fit_statistics", refuse)


def test_everything_that_takes_a_checkpoint_uses_its_normalizer_without_training_data(
    setting: Any, tmp_path: Path, no_fitting: Callable[[], None]
) -> None:
    path = tmp_path / "run.ckpt"
    model, datamodule = setting.fit(path)
    normalizer = copy.deepcopy(datamodule.normalizer)
    [before] = setting.trainer().test(model, datamodule=datamodule, verbose=False)
    test_files = list(datamodule.datasets["test"].dataset.paths)

    shutil.rmtree(tmp_path / "cache")
    for file in datamodule.datasets["train"].dataset.paths:
        file.unlink()
    no_fitting()

    for call in ("test", "validate", "predict"):
        fresh, trainer = setting.datamodule(), setting.trainer()
        options = {} if call == "predict" else {"verbose": False}
        result = getattr(trainer, call)(
            type(model)(), datamodule=fresh, ckpt_path=str(path), weights_only=True, **options
        )
        assert same(fresh.normalizer, normalizer)
        assert same(trainer.lightning_module.normalizer, normalizer)
        assert fresh.fingerprint == datamodule.fingerprint
        assert fresh.statistics.equals(datamodule.statistics)
        if call == "test":
            assert result == [before]
            assert fresh.datasets["test"].dataset.paths == test_files

    loaded = OFDFTDataModule.load_from_checkpoint(path)
    assert same(loaded.normalizer, normalizer)
    assert loaded.source == datamodule.source
    assert loaded.batch_size == datamodule.batch_size
    assert setting.trainer().test(type(model).load_from_checkpoint(path), datamodule=loaded, verbose=False) == [before]
    # the model brings its normaliser along, to a data module that knows no checkpoint
    rest = setting.datamodule(split=SplitConfig(train=0, val=1, test=0))
    assert setting.trainer().validate(type(model).load_from_checkpoint(path), datamodule=rest, verbose=False)
    assert same(rest.normalizer, normalizer)
    with pytest.raises(SplitError, match="label files of the train split that do not exist: 4"):
        loaded.train_dataloader()


def denormalised(path: Path, fields: dict[str, Any]) -> Tensor:
    model, batch = TinyModel.load_from_checkpoint(path, weights_only=True), Data(**fields)
    return model.normalizer.denormalize_energy(batch.energy_label.double(), batch)


def test_a_model_denormalises_in_a_process_that_has_no_data(setting: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    _, datamodule = setting.fit(path)
    batch = next(iter(datamodule.test_dataloader()))
    expected = datamodule.normalizer.denormalize_energy(batch.energy_label.double(), batch)
    fields = {name: batch[name] for name in ("energy_label", "energy_reference", "normalized")}
    shutil.rmtree(setting.labels)
    found = in_new_process(denormalised, path, fields)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_checkpoint_is_plain_data_and_says_where_it_came_from(setting: Any, tmp_path: Path) -> None:
    from ofdft_norm.version import package_version

    path = tmp_path / "run.ckpt"
    _, datamodule = setting.fit(path)
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["OFDFTDataModule"]
    assert state["package_version"] == state["normalizer"]["package_version"] == package_version()
    assert state["fingerprint"] == datamodule.fingerprint
    assert state["normalizer"]["reference"]["kind"] == "AtomRef"
    assert state["normalizer"]["rescaling"]["kind"] == "DimensionWiseRescaling"
    assert state["normalizer"]["rescaling"]["settings"]["s_grad"] == 0.05
    values = state["normalizer"]["rescaling"]["values"]
    assert torch.equal(values["coeff_biases"], datamodule.normalizer.rescaling.coeff_biases)
    assert path.stat().st_size < 2**19


def entries(path: Path) -> tuple[Any, Any]:
    """The normaliser in the model's and in the data module's state of a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    return checkpoint["state_dict"]["model_normalizer._extra_state"], checkpoint["OFDFTDataModule"]["normalizer"]


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_holds_the_normalizer_once(setting: Any, tmp_path: Path, weights_only: bool) -> None:
    model, datamodule, trainer = setting.tiny_model(), setting.datamodule(), setting.trainer(limit_train_batches=1)
    trainer.fit(model, datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "run.ckpt", weights_only)
    in_model, in_datamodule = entries(tmp_path / "run.ckpt")
    assert in_model == {}
    assert describe_difference(in_datamodule, normalizer_to_state(datamodule.normalizer)) == ""
    assert same(type(model).load_from_checkpoint(tmp_path / "run.ckpt").normalizer, datamodule.normalizer)
    assert same(OFDFTDataModule.load_from_checkpoint(tmp_path / "run.ckpt").normalizer, datamodule.normalizer)
    # a state dict alone is complete
    alone = setting.tiny_model()
    alone.load_state_dict(model.state_dict())
    assert same(alone.normalizer, datamodule.normalizer)


def test_a_model_that_reads_checkpoints_in_its_own_way_keeps_an_entry(setting: Any, tmp_path: Path) -> None:
    class OwnReader(setting.tiny_model):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            """As many do: without a call of the base class's."""

    datamodule, trainer = setting.datamodule(), setting.trainer(limit_train_batches=1)
    trainer.fit(OwnReader(), datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert describe_difference(*entries(tmp_path / "run.ckpt")) == ""
    assert same(OwnReader.load_from_checkpoint(tmp_path / "run.ckpt").normalizer, datamodule.normalizer)


def test_a_model_that_gets_the_mixin_later_finds_the_normalizer(setting: Any, tmp_path: Path) -> None:
    class Plain(LightningModule):
        training_step, configure_optimizers = setting.tiny_model.training_step, setting.tiny_model.configure_optimizers
        forward, loss = setting.tiny_model.forward, setting.tiny_model.loss

        def __init__(self, n_basis: int = 361) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(torch.zeros(n_basis))
            self.learning_rate = 0.1
            self.losses: list[Any] = []
            self.dtypes: set[Any] = set()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            """Nothing to see."""

    path = tmp_path / "run.ckpt"
    datamodule, trainer = setting.datamodule(), setting.trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(Plain(), datamodule=datamodule)
    trainer.save_checkpoint(path)
    assert "model_normalizer._extra_state" not in torch.load(path, weights_only=True)["state_dict"]
    assert same(setting.tiny_model.load_from_checkpoint(path).normalizer, datamodule.normalizer)
    fresh = setting.datamodule()
    setting.trainer().test(setting.tiny_model(), datamodule=fresh, ckpt_path=str(path), verbose=False)
    assert same(fresh.normalizer, datamodule.normalizer)
    # and where nothing holds one, that is said when it is asked for
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["OFDFTDataModule"]
    torch.save(checkpoint, path)
    with pytest.raises(NormalizationError, match="has no normaliser yet: load a checkpoint that holds one"):
        _ = setting.tiny_model.load_from_checkpoint(path).normalizer


def test_the_models_normalizer_counts_where_no_data_module_wrote_the_checkpoint(setting: Any, tmp_path: Path) -> None:
    source = setting.datamodule(energy_scale=3.0)
    source.setup("fit")
    model, trainer = setting.tiny_model(), setting.trainer(limit_train_batches=1, limit_val_batches=0)
    model.normalizer = source.normalizer
    trainer.fit(model, source.train_dataloader(), source.val_dataloader())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert same(setting.tiny_model.load_from_checkpoint(tmp_path / "run.ckpt").normalizer, source.normalizer)
    other = setting.datamodule()
    other.setup("fit")
    with pytest.warns(UserWarning, match=r"model's normaliser differs.*energy_scale: differs by up to 2"):
        setting.trainer().test(
            setting.tiny_model(), datamodule=other, ckpt_path=str(tmp_path / "run.ckpt"), verbose=False
        )
    assert same(other.normalizer, source.normalizer)


def test_reading_the_normalizer_is_a_plain_read(setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, datamodule = setting.fit(tmp_path / "run.ckpt", limit_train_batches=1)
    assert datamodule.trainer.lightning_module is model

    def refuse(*args: Any) -> None:
        raise AssertionError("a read wrote or compared a state")

    monkeypatch.setattr("ofdft_norm.datamodule.normalizer_to_state", refuse)
    monkeypatch.setattr("ofdft_norm.datamodule.describe_difference", refuse)
    assert datamodule.normalizer is datamodule.normalizer
    assert model.normalizer is model.normalizer


SETTINGS = {
    "linear": {
        "reference": LinearReferencesConfig(),
        "rescaling": RescalingConfig(equivariant=True),
        "energy_scale": "std",
    },
    "given": {"reference": LinearReferencesConfig(values={"H": -0.5, "C": -38, "N": -54, "O": -75}), "rescaling": None},
    "scalar": {"reference": AtomRefConfig(scalar_only=True), "rescaling": RescalingConfig(s_coeff=20, s_grad=0.2)},
    "none": {"reference": None, "rescaling": None, "energy_scale": 2.0, "unseen_elements": "identity"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_kind_of_normalizer_survives_a_checkpoint_to_the_last_bit(
    setting: Any, tmp_path: Path, tiny_model: Any, name: str
) -> None:
    path = tmp_path / "run.ckpt"
    setting.fit(path, setting.datamodule(**SETTINGS[name]), limit_train_batches=1, limit_val_batches=0)
    loaded = OFDFTDataModule.load_from_checkpoint(path)
    fitted = setting.datamodule(**SETTINGS[name])
    fitted.setup("fit")
    assert same(loaded.normalizer, fitted.normalizer)
    assert same(tiny_model.load_from_checkpoint(path).normalizer, fitted.normalizer)
    assert loaded.settings == fitted.settings
    a, b = next(iter(loaded.test_dataloader())), next(iter(fitted.test_dataloader()))
    for field in a.keys():
        assert torch.equal(a[field], b[field]) if isinstance(a[field], Tensor) else a[field] == b[field]


def test_the_checkpoint_wins_and_a_warning_says_how_it_differs(setting: Any, tmp_path: Path, tiny_model: Any) -> None:
    path = tmp_path / "run.ckpt"
    _, trained = setting.fit(path)
    other = setting.datamodule(split=SplitConfig(train=0.66, val=0.17, test=0.17, seed=1), energy_scale=3.0)
    other.setup("fit")
    assert not same(other.normalizer, trained.normalizer)
    with pytest.warns(UserWarning, match=r"checkpoint's normaliser differs.*rescaling\.coeff_biases.*energy_scale"):
        setting.trainer().test(tiny_model(), datamodule=other, ckpt_path=str(path), verbose=False)
    assert same(other.normalizer, trained.normalizer)

    another = setting.datamodule(energy_scale=3.0)
    another.setup("fit")
    model = tiny_model.load_from_checkpoint(path)
    with pytest.warns(UserWarning, match=r"model's normaliser differs.*energy_scale: differs by up to 2"):
        setting.trainer().test(model, datamodule=another, verbose=False)
    assert same(another.normalizer, trained.normalizer)


def test_settings_that_a_checkpoint_has_otherwise_are_named(setting: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    _, trained = setting.fit(path, limit_train_batches=1)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"energy_scale": 3.0}, r"energy_scale: 3\.0 against 1\.0"),
        ({"reference": None}, r"reference: None against Atom"),
        ({"rescaling": None}, r"rescaling: None against Rescaling.*s_grad=0\.05"),
        ({"unseen_elements": "identity"}, "unseen_elements: identity against error"),
    ]
    for options, message in changes:
        with pytest.warns(UserWarning, match=f"checkpoint's normaliser differs.*present against checkpoint: {message}"):
            loaded = OFDFTDataModule.load_from_checkpoint(path, **options)
        assert same(loaded.normalizer, trained.normalizer)


def test_checkpoints_of_another_target_or_other_pre_transforms_are_refused(setting: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    setting.fit(path, limit_train_batches=1)
    other = setting.source(energy_key="e_tot", gradient_key="grad_tot")
    message = r"other labels.*energy_key = 'e_kin' there, 'e_tot' here, gradient_key = .*\(config: data\.source"
    with pytest.raises(ConfigError, match=message):
        OFDFTDataModule.load_from_checkpoint(path, source=other)
    with pytest.raises(ConfigError, match=r"pre_transforms = \['ProjectGradient\(\)'\] there, \[\] here"):
        OFDFTDataModule.load_from_checkpoint(path, pre_transforms=[])


def test_training_is_not_resumed_on_what_was_tested(setting: Any, tmp_path: Path, tiny_model: Any) -> None:
    path = tmp_path / "run.ckpt"
    _, trained = setting.fit(path, limit_train_batches=1)
    tested = trained.datasets["test"].dataset.paths[0].name
    everything = setting.datamodule(split=SplitConfig(train=1, val=0, test=0))
    with pytest.raises(SplitError, match=rf"validated or tested on 2 molecules that .*{tested}.*data\.split"):
        setting.trainer(max_epochs=2).fit(tiny_model(), datamodule=everything, ckpt_path=str(path))
    # to test on other molecules is everybody's right
    setting.trainer().test(
        tiny_model(), datamodule=setting.datamodule(split=SplitConfig(train=0, val=0, test=1)), ckpt_path=str(path)
    )


def test_labels_that_change_between_two_fits_are_measured_anew(setting: Any, tiny_model: Any) -> None:
    datamodule = setting.datamodule()
    datamodule.setup("fit")
    first, fingerprint = datamodule.normalizer, datamodule.fingerprint
    datamodule.setup("fit")
    assert datamodule.normalizer is first
    file, other = datamodule.datasets["train"].dataset.paths[:2]
    shutil.copy(other, file)
    with pytest.warns(UserWarning, match="training labels have changed since the normaliser was fitted"):
        datamodule.setup("fit")
    assert datamodule.fingerprint != fingerprint
    assert not same(datamodule.normalizer, first)
    fresh = setting.datamodule()
    fresh.setup("fit")
    assert same(datamodule.normalizer, fresh.normalizer)


def test_a_stage_that_does_not_exist_is_refused(setting: Any) -> None:
    with pytest.raises(ConfigError, match=r"setup\('nonsense'\): expected 'fit', 'validate', 'test', 'predict'"):
        setting.datamodule().setup("nonsense")


def test_files_that_come_later_do_not_change_a_remembered_split(setting: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    _, datamodule = setting.fit(path)
    before = {part: [p.name for p in dataset.dataset.paths] for part, dataset in datamodule.datasets.items()}
    for i, file in enumerate(sorted(setting.labels.iterdir())):
        shutil.copy(file, setting.labels / f"{i}_{file.name}")

    def parts(datamodule: OFDFTDataModule) -> dict[str, list[str]]:
        return {part: [p.name for p in dataset.dataset.paths] for part, dataset in datamodule.datasets.items()}

    assert parts(OFDFTDataModule.load_from_checkpoint(path)) == before
    assert parts(setting.datamodule()) != before
    # other settings, other split: the checkpoint's says nothing about it
    split = SplitConfig(train=0.25, val=0.25, test=0.5, seed=0)
    assert sum(map(len, parts(OFDFTDataModule.load_from_checkpoint(path, split=split)).values())) == 12


def test_labels_in_another_basis_than_the_checkpoints_are_refused(setting: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    setting.fit(path)
    setting.basis_file = setting.basis_info
    basis = json.loads(Path(setting.basis_info).read_text())
    basis["irreps_per_atom"][0], basis["exponents_per_atom"] = "2x0e", None
    (tmp_path / "basis.json").write_text(json.dumps(basis))
    setting.basis_info = str(tmp_path / "basis.json")
    other = OFDFTDataModule.load_from_checkpoint(path, source=setting.source())
    with pytest.raises(ConfigError, match=r"checkpoint's normaliser belongs to the basis .* but the labels have"):
        other.test_dataloader()
    basis = json.loads(Path(setting.basis_file).read_text()) | {"p_order": "xyz"}
    (tmp_path / "basis.json").write_text(json.dumps(basis))
    other = OFDFTDataModule.load_from_checkpoint(path, source=setting.source())
    with pytest.raises(ConfigError, match=r"stand in the order 'yzx', but these have 'xyz'.*data\.source\.basis_info"):
        other.test_dataloader()
    assert "but the data have no density coefficients" in _unlike(None, BasisInfo([1], ["1x0e"]))


def identity(sample: Any) -> Any:
    return sample


def test_arguments_that_are_no_plain_data_are_asked_for(setting: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    setting.fit(path, setting.datamodule(pre_transforms=[identity]))
    with pytest.raises(ConfigError, match=r"arguments \['pre_transforms'\].*pass them to load_from_checkpoint"):
        OFDFTDataModule.load_from_checkpoint(path)
    loaded = OFDFTDataModule.load_from_checkpoint(path, pre_transforms=[identity])
    assert len(list(loaded.test_dataloader())) > 0


def test_checkpoints_of_others_and_of_the_future_are_refused(setting: Any, tmp_path: Path, tiny_model: Any) -> None:
    path = tmp_path / "run.ckpt"
    setting.fit(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["OFDFTDataModule"]["normalizer"]["state_version"] = 99
    torch.save(checkpoint, path)
    with pytest.raises(NormalizationError, match=r"state version 99.*upgrade ofdft-norm"):
        OFDFTDataModule.load_from_checkpoint(path)
    del checkpoint["OFDFTDataModule"]
    torch.save(checkpoint, path)
    with pytest.raises(ConfigError, match="has no state of OFDFTDataModule"):
        OFDFTDataModule.load_from_checkpoint(path)


def test_a_checkpoint_cannot_name_classes_of_others(setting: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    setting.fit(path)
    checkpoint = torch.load(path, weights_only=True)
    saved = checkpoint["OFDFTDataModule"]["arguments"]["saved"]
    for module, name in (("subprocess", "Popen"), ("ofdft_norm.config", "Any"), ("ofdft_norm.nowhere", "Split")):
        saved["split"].update({"module": module, "class": name})
        torch.save(checkpoint, path)
        with pytest.raises(ConfigError, match=rf"names {module}\.{name}"):
            OFDFTDataModule.load_from_checkpoint(path)


def test_the_mixin_stands_before_the_module_among_the_bases(tiny_model: Any) -> None:
    message = r"expected NormalizerMixin before LightningModule .*: class Wrong\(NormalizerMixin, LightningModule\)"
    with pytest.raises(TypeError, match=message):
        type("Wrong", (LightningModule, NormalizerMixin), {})
    assert type("Right", (NormalizerMixin, LightningModule), {})
    assert type("Derived", (tiny_model,), {})


def test_a_model_without_any_normalizer_says_what_to_do(tiny_model: Any) -> None:
    model = tiny_model()
    with pytest.raises(NormalizationError, match="load a checkpoint that holds one, train it with"):
        _ = model.normalizer
    model.normalizer = Normalizer(
        LinearReferences(torch.arange(119.0)),
        DimensionWiseRescaling(np.ones(3), np.full(3, 2.0), np.full(3, 0.1)),
    )
    other = tiny_model()
    other.load_state_dict(model.state_dict(), strict=True)
    assert same(other.normalizer, model.normalizer)
    assert other.to(torch.bfloat16).normalizer.energy_scale.dtype == torch.float64
    assert same(copy.deepcopy(model).normalizer, model.normalizer)


def test_given_statistics_need_no_training_files(setting: Any, tmp_path: Path) -> None:
    first = setting.datamodule()
    first.setup("fit")
    first.statistics.save_to(tmp_path / "given.zarr")
    for file in first.datasets["train"].dataset.paths:
        file.unlink()
    names = [path.name for path in first.datasets["val"].dataset.paths]
    (tmp_path / "split.json").write_text(json.dumps({"train": ["gone.zarr.zip"], "val": names}))
    second = setting.datamodule(
        statistics=StatisticsConfig(path=str(tmp_path / "given.zarr")),
        split=SplitConfig(file=str(tmp_path / "split.json")),
    )
    second.setup("validate")
    assert len(list(second.val_dataloader())) > 0
    assert same(first.normalizer, second.normalizer)


def moved(value: Any, here: str, there: str) -> Any:
    """A checkpoint's entry with another path in all of its texts."""
    if isinstance(value, dict):
        return {key: moved(v, here, there) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(v, here, there) for v in value)
    return value.replace(here, there) if isinstance(value, str) else value


@pytest.mark.filterwarnings("ignore:the basis has the elements .9.")  # these molecules have no fluorine
def test_embedded_labels_are_found_by_name_after_the_package_moved(setting: Any, tmp_path: Path) -> None:
    """The checkpoint is as another installation, which is gone, would have written it."""
    path, here, there = tmp_path / "run.ckpt", str(EMBEDDED_DATA), "/gone/env/lib/ofdft_norm/data/embedded"
    names = [file.name for file in sorted(setting.labels.iterdir())]
    others = [file.name for file in (EMBEDDED_DATA / "labels").iterdir() if file.name not in names]
    setting.fit(path, setting.datamodule(source=EmbeddedLabels(exclude=others)))
    checkpoint = torch.load(path, weights_only=True)
    state = moved(checkpoint["OFDFTDataModule"], here, there)
    assert there in str(state["arguments"])
    assert there in state["split"]["identity"]
    # another split than the one that would be drawn: the checkpoint's is used, or it would not be seen
    files = {"train": names[:2], "val": names[2:3], "test": names[3:]}
    state["split"]["files"] = files_to_state({k: [f"{there}/labels/{n}" for n in v] for k, v in files.items()})
    torch.save({**checkpoint, "OFDFTDataModule": state}, path)

    datamodule = OFDFTDataModule.load_from_checkpoint(path)
    found = {part: [Path(p) for p in dataset.dataset.paths] for part, dataset in datamodule.datasets.items()}
    assert found == {part: [EMBEDDED_DATA / "labels" / name for name in of_part] for part, of_part in files.items()}
    assert datamodule.source == EmbeddedLabels(exclude=others)
    assert len(datamodule.datasets["train"]) > 0
