"""Stages in any order, reuse by several trainers, the Tuner, precision, where normalisation runs, and units."""

import copy
import json
import pickle
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor

from ofdft_norm import AtomRef, OFDFTDataModule
from ofdft_norm.config import SplitConfig, StatisticsConfig
from ofdft_norm.errors import ConfigError, NormalizationError, SplitError, StatisticsError
from ofdft_norm.example.callbacks import collect_scalars
from ofdft_norm.normalization.state import describe_difference, dump_normalizer
from ofdft_norm.units import find_factor
from tests.lightning.conftest import Setting, TinyModel

LOADERS = {
    "fit": ("train_dataloader", "val_dataloader"),
    "validate": ("val_dataloader",),
    "test": ("test_dataloader",),
    "predict": ("predict_dataloader",),
}


def difference(a: OFDFTDataModule, b: OFDFTDataModule) -> str:
    return describe_difference(dump_normalizer(a.normalizer), dump_normalizer(b.normalizer))


@pytest.mark.parametrize(
    "stages",
    [
        ["fit", "validate", "test", "predict"],
        ["predict", "test", "validate", "fit", "fit", "test"],
        ["validate", "teardown", "fit", "teardown", "test", "predict", "teardown", "fit"],
    ],
)
def test_stages_come_in_any_order(setting, stages):
    expected, datamodule = setting.datamodule(), setting.datamodule()
    expected.setup("fit")
    for stage in stages:
        if stage == "teardown":
            datamodule.teardown("fit")
            continue
        datamodule.setup(stage)
        for loader in LOADERS[stage]:
            assert next(iter(getattr(datamodule, loader)())).normalized.all()
    assert difference(datamodule, expected) == ""
    assert set(datamodule.datasets) == {"train", "val", "test"}


def test_a_data_module_serves_a_second_trainer_and_copies(setting):
    datamodule = setting.datamodule()
    trainer, model = setting.trainer(), TinyModel()
    trainer.fit(model, datamodule=datamodule)
    trainer.validate(model, datamodule=datamodule, verbose=False)
    normalizer = dump_normalizer(datamodule.normalizer)
    copied = copy.deepcopy(datamodule)
    assert copied.trainer is None
    unpickled = pickle.loads(pickle.dumps(datamodule))
    for other in (datamodule, copied, unpickled):
        second = setting.trainer(limit_train_batches=1, limit_val_batches=0)
        second.fit(TinyModel(), datamodule=other)
        second.test(datamodule=other, ckpt_path=None, model=model, verbose=False)
        assert describe_difference(dump_normalizer(other.normalizer), normalizer) == ""
        assert len(second.predict(model, datamodule=other)) == len(other.test_dataloader())


def test_lightnings_tuner_finds_a_learning_rate_and_a_batch_size(setting):
    datamodule, model = setting.datamodule(batch_size=2), TinyModel()
    trainer = setting.trainer(max_epochs=3)
    found = Tuner(trainer).lr_find(model, datamodule=datamodule, num_training=5, update_attr=True)
    assert model.learning_rate == found.suggestion() or found.suggestion() is None
    trainer = setting.trainer()
    size = Tuner(trainer).scale_batch_size(model, datamodule=datamodule, max_trials=2, steps_per_trial=1, init_val=2)
    assert datamodule.batch_size == datamodule.loader.batch_size == size
    assert size in (4, 8)  # Lightning 2.5.0 ends with twice what it tried
    assert max(batch.num_graphs for batch in datamodule.train_dataloader()) == size
    trainer.fit(model, datamodule=datamodule)
    with pytest.raises(ConfigError, match=r"data\.loader\.batch_size"):
        datamodule.batch_size = 0


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("64-true", torch.float64), ("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)],
)
def test_labels_follow_the_precision_and_references_stay_float64(setting, precision, dtype):
    datamodule, model = setting.datamodule(), TinyModel()
    trainer = setting.trainer(precision=precision, limit_train_batches=1, limit_val_batches=1)
    trainer.fit(model, datamodule=datamodule)
    assert model.dtypes == {dtype}
    assert model.weights.dtype == (dtype if "true" in precision else torch.float32)
    for buffer in (b for b in model.normalizer.buffers() if b.is_floating_point()):
        assert buffer.dtype == torch.float64
    assert difference(datamodule, setting.datamodule()) == ""
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.coeffs.dtype == batch.energy_label.dtype == dtype
    assert model.normalizer.denormalize_energy(batch.energy_label, batch).dtype == torch.float64


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_normalising_batches_gives_what_normalising_samples_gives(setting, dtype, tolerance):
    by_sample, by_batch = (
        setting.datamodule(dtype=dtype, loader={"shuffle": False}, energy_scale="std", apply=apply)
        for apply in ("dataset", "batch")
    )
    for a, raw in zip(by_sample.train_dataloader(), by_batch.train_dataloader(), strict=True):
        assert "normalized" not in raw
        b = by_batch.on_after_batch_transfer(raw, 0)
        assert {b[field].dtype for field in ("coeffs", "pos", "energy_label")} == {getattr(torch, dtype)}
        assert set(a.keys()) == set(b.keys())
        for field in a.keys():
            if isinstance(a[field], Tensor):
                torch.testing.assert_close(a[field], b[field], rtol=tolerance, atol=tolerance, msg=field)
            else:
                assert a[field] == b[field]
        assert by_batch.on_after_batch_transfer((1, 2), 0) == (1, 2)


@pytest.mark.filterwarnings("ignore:the basis has the elements", "ignore:Total length of `list`")
def test_elements_that_only_held_out_molecules_have_are_refused_before_training(tmp_path):
    other = Setting(tmp_path / "other", ["methane", "ethane", "ethyne", "water"])
    split, parts = tmp_path / "split.json", {"train": ["methane.zarr.zip", "ethane.zarr.zip"]}
    split.write_text(json.dumps(parts))
    trained, _ = other.fit(tmp_path / "run.ckpt", other.datamodule(split=SplitConfig(file=str(split))))
    n_steps = len(trained.losses)
    split.write_text(json.dumps(parts | {"test": ["water.zarr.zip"]}))
    for model in (TinyModel(), trained):
        with pytest.raises(NormalizationError, match=r"test split.*\[8\].*unseen_elements"):
            other.trainer().fit(model, other.datamodule(split=SplitConfig(file=str(split))))
    assert len(trained.losses) == n_steps
    datamodule = other.datamodule(split=SplitConfig(file=str(split)), unseen_elements="identity", reference=None)
    datamodule.setup("fit")
    assert next(iter(datamodule.test_dataloader())).normalized.all()


def test_normalised_data_cannot_be_wrapped(setting):
    datamodule = setting.datamodule()
    with pytest.raises(ConfigError, match="normalised already"):
        OFDFTDataModule.wrap(datamodule)


def test_training_goes_on_without_validation_and_other_missing_parts_are_named(setting):
    datamodule, trainer = setting.datamodule(split=SplitConfig(train=1.0, val=0, test=0)), setting.trainer()
    model = TinyModel()
    with pytest.warns(UserWarning, match="Total length of `list` across ranks is zero"):
        trainer.fit(model, datamodule=datamodule)
    assert len(model.losses) == -(-len(datamodule.datasets["train"]) // datamodule.batch_size)
    with pytest.raises(SplitError, match="no 'val' split"):
        trainer.validate(model, datamodule=datamodule)
    with pytest.raises(SplitError, match=r"no 'test' split; they have \['train'\]"):
        datamodule.test_dataloader()
    with pytest.raises(SplitError, match=r"no 'train' split"):
        setting.datamodule(split=SplitConfig(train=0, val=0, test=1)).setup("fit")


@pytest.mark.filterwarnings("ignore:You have overridden")  # Lightning does not know that ours calls the model's
def test_a_models_own_hook_is_called_after_normalisation(setting):
    class Hooked(TinyModel):
        seen: ClassVar[list[bool]] = []

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.seen.append("normalized" in batch)
            return batch

    for apply in ("dataset", "batch"):
        Hooked.seen.clear()
        model = Hooked()
        setting.trainer(limit_train_batches=2).fit(model, setting.datamodule(apply=apply))
        assert Hooked.seen
        assert all(Hooked.seen)


def test_an_error_of_dtypes_names_the_option_of_the_layers(setting):
    class Layered(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.atom_ref, self.linear = AtomRef(torch.zeros(5), 0.0, torch.zeros(999)), torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.linear(self.atom_ref(batch)[:, None]).sum()

    with pytest.raises(RuntimeError, match="dtype") as raised:
        setting.trainer(limit_train_batches=1).fit(Layered(), setting.datamodule())
    assert any("'AtomRef'" in note and "output_dtype='input'" in note for note in raised.value.__notes__)


# --- units -----

EV = find_factor("hartree", "eV")


def in_unit(setting: Any, unit: Any, **options: Any) -> OFDFTDataModule:
    datamodule = setting.datamodule(unit=unit, dtype="float64", loader={"shuffle": False}, **options)
    datamodule.setup("fit")
    return datamodule


def test_label_files_are_read_in_the_unit_that_is_asked_for(setting):
    hartree, ev = in_unit(setting, "hartree"), in_unit(setting, "eV", energy_scale=EV)
    assert hartree.fingerprint != ev.fingerprint
    for a, b in zip(hartree.train_dataloader(), ev.train_dataloader(), strict=True):
        # with the same scale in another unit, the network sees the same numbers
        for field in ("coeffs", "gradient_label", "energy_label", "dual_basis_integrals"):
            torch.testing.assert_close(a[field], b[field], rtol=1e-7, atol=1e-7)
        energies = [d.normalizer.denormalize_energy(x.energy_label, x) for d, x in ((hartree, a), (ev, b))]
        torch.testing.assert_close(EV * energies[0], energies[1], rtol=1e-12, atol=1e-9)
        gradients = [d.normalizer.denormalize_gradient(x.gradient_label, x) for d, x in ((hartree, a), (ev, b))]
        torch.testing.assert_close(EV * gradients[0], gradients[1], rtol=1e-9, atol=1e-9)
    assert "eV" in ev.summary()
    assert "Ha" not in ev.summary()
    found, expected = collect_scalars(ev), ev.statistics["has_energy_label"].residual("atom_ref")
    for name in ("mean", "std"):
        logged = found[f"normalization/reference_residual_{name}_meV"]
        assert logged == pytest.approx(1000 * getattr(expected, name), rel=1e-10)


def test_statistics_of_another_unit_are_refused(setting, tmp_path):
    in_unit(setting, "hartree").statistics.save_to(tmp_path / "statistics.zarr")
    given = StatisticsConfig(path=str(tmp_path / "statistics.zarr"))
    with pytest.raises(StatisticsError, match=r"taken with unit = hartree, .* has eV: .*\(config: data.unit\)"):
        in_unit(setting, "eV", statistics=given)
    assert in_unit(setting, "hartree", statistics=given).normalizer.unit == "hartree"
