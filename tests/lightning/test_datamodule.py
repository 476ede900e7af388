"""Stages in any order, reuse by several trainers, the Tuner, precision, workers, and where normalisation runs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor

from ofdft_norm import AtomRef, OFDFTDataModule
from ofdft_norm.config import SplitConfig
from ofdft_norm.errors import ConfigError, NormalizationError, SplitError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch
from ofdft_norm.normalization.state import describe_difference, normalizer_to_state
from tests.lightning.conftest import Setting, TinyModel

LOADERS = {
    "fit": ("train_dataloader", "val_dataloader"),
    "validate": ("val_dataloader",),
    "test": ("test_dataloader",),
    "predict": ("predict_dataloader",),
}


def difference(a: OFDFTDataModule, b: OFDFTDataModule) -> str:
    return describe_difference(normalizer_to_state(a.normalizer), normalizer_to_state(b.normalizer))


def assert_equal_batches(a: Any, b: Any, **tolerance: float) -> None:
    assert set(a.keys()) == set(b.keys())
    for field in a.keys():
        if isinstance(a[field], Tensor):
            assert a[field].dtype == b[field].dtype, field
            torch.testing.assert_close(a[field], b[field], **(tolerance or {"rtol": 0.0, "atol": 0.0}), msg=field)
        else:
            assert a[field] == b[field]


@pytest.mark.parametrize(
    "stages",
    [
        ["fit", "validate", "test", "predict"],
        ["predict", "test", "validate", "fit", "fit", "test"],
        ["validate", "teardown", "fit", "teardown", "test", "predict", "teardown", "fit"],
    ],
)
def test_stages_come_in_any_order(setting: Any, stages: list[str]) -> None:
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


def test_a_data_module_serves_a_second_trainer_and_copies(setting: Any) -> None:
    datamodule = setting.datamodule()
    trainer, model = setting.trainer(), TinyModel()
    trainer.fit(model, datamodule=datamodule)
    trainer.validate(model, datamodule=datamodule, verbose=False)
    normalizer = normalizer_to_state(datamodule.normalizer)
    copied = copy.deepcopy(datamodule)
    assert copied.trainer is None
    unpickled = pickle.loads(pickle.dumps(datamodule))
    for other in (datamodule, copied, unpickled):
        second = setting.trainer()
        second.fit(TinyModel(), datamodule=other)
        second.test(datamodule=other, ckpt_path=None, model=model, verbose=False)
        assert describe_difference(normalizer_to_state(other.normalizer), normalizer) == ""
        assert len(second.predict(model, datamodule=other)) == len(other.test_dataloader())


def test_two_data_modules_in_one_process_share_nothing(setting: Any) -> None:
    first, second = setting.datamodule(), setting.datamodule(reference=None, rescaling=None, energy_scale=2.0)
    first.setup("fit")
    before = normalizer_to_state(first.normalizer)
    second.setup("fit")
    second.normalizer.energy_scale.fill_(5.0)
    second.batch_size = 3
    assert describe_difference(normalizer_to_state(first.normalizer), before) == ""
    assert difference(first, setting.datamodule()) == ""
    assert (first.batch_size, second.normalizer.reference) == (8, None)


def test_lightnings_tuner_finds_a_learning_rate_and_a_batch_size(setting: Any) -> None:
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
    ("precision", "dtype", "tolerance"),
    [
        ("64-true", torch.float64, 1e-12),
        ("32-true", torch.float32, 1e-6),
        ("bf16-mixed", torch.float32, 1e-6),
        ("bf16-true", torch.bfloat16, 1e-2),
    ],
)
def test_labels_follow_the_precision_and_references_stay_float64(
    setting: Any, precision: str, dtype: torch.dtype, tolerance: float
) -> None:
    datamodule, model = setting.datamodule(), TinyModel()
    trainer = setting.trainer(precision=precision)
    trainer.fit(model, datamodule=datamodule)
    assert model.dtypes == {dtype}
    assert model.weights.dtype == (dtype if "true" in precision else torch.float32)
    for buffer in (b for b in model.normalizer.buffers() if b.is_floating_point()):
        assert buffer.dtype == torch.float64
    assert difference(datamodule, setting.datamodule()) == ""
    trainer.test(model, datamodule=datamodule, verbose=False)

    datamodule.setup("test")
    batch = next(iter(datamodule.test_dataloader()))
    raw = [datamodule.parts["test"][i] for i in range(batch.num_graphs)]
    exact = torch.cat([sample.energy_label for sample in raw])[batch.has_energy_label]
    energy = model.normalizer.denormalize_energy(batch.energy_label, batch)[batch.has_energy_label]
    assert energy.dtype == torch.float64
    # exact up to the rounding of the normalised label, whatever the size of the reference
    bound = tolerance * (1 + (exact - batch.energy_reference[batch.has_energy_label]).abs())
    assert ((energy - exact).abs() <= bound).all()
    assert (exact.abs() > 100).all()


def test_dtypes_can_be_set_against_the_precision(setting: Any) -> None:
    for name, dtype in (("float64", torch.float64), ("float16", torch.float16), ("auto", torch.float32)):
        batch = next(iter(setting.datamodule(dtype=name).train_dataloader()))
        assert {batch[f].dtype for f in ("coeffs", "pos", "gradient_label", "energy_label")} == {dtype}
        assert batch.energy_reference.dtype == torch.float64


def test_data_sets_pickle_in_kilobytes(setting: Any) -> None:
    datamodule = setting.datamodule(source=setting.source(keep_in_memory=True))
    datamodule.setup("fit")
    dataset = datamodule.datasets["train"]
    _ = [dataset[i] for i in range(len(dataset))]
    assert dataset[1] is not dataset[1]
    assert torch.equal(dataset[1].coeffs, dataset[1].coeffs)
    assert len(pickle.dumps(dataset)) < 50_000  # the kept samples are left out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalising_batches_gives_what_normalising_samples_gives(setting: Any, dtype: str) -> None:
    by_sample = setting.datamodule(dtype=dtype, loader={"shuffle": False}, energy_scale="std")
    by_batch = setting.datamodule(dtype=dtype, loader={"shuffle": False}, energy_scale="std", apply="batch")
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    for a, raw in zip(by_sample.train_dataloader(), by_batch.train_dataloader(), strict=True):
        assert "normalized" not in raw
        b = by_batch.on_after_batch_transfer(raw, 0)
        assert_equal_batches(a, b, rtol=tolerance, atol=tolerance)
        assert by_batch.on_after_batch_transfer((1, 2), 0) == (1, 2)
    models = [TinyModel(), TinyModel()]
    for model, datamodule in zip(models, (by_sample, by_batch), strict=True):
        trainer = setting.trainer(max_epochs=2, precision="64-true" if dtype == "float64" else "32-true")
        trainer.fit(model, datamodule=datamodule)
        trainer.test(model, datamodule=datamodule, verbose=False)
    torch.testing.assert_close(models[0].losses, models[1].losses, rtol=1e-5, atol=1e-7)


def test_elements_that_only_held_out_molecules_have_are_refused_before_training(tmp_path: Path) -> None:
    other = Setting(tmp_path / "other", ["methane", "ethane", "ethyne", "water"])
    split = tmp_path / "split.json"
    split.write_text('{"train": ["methane.zarr.zip", "ethane.zarr.zip"], "test": ["water.zarr.zip"]}')
    datamodule = other.datamodule(split=SplitConfig(file=str(split)))
    with (
        pytest.raises(NormalizationError, match=r"test split.*\[8\].*unseen_elements"),
        pytest.warns(UserWarning, match=r"."),
    ):
        datamodule.setup("fit")
    datamodule = other.datamodule(split=SplitConfig(file=str(split)), unseen_elements="identity", reference=None)
    datamodule.setup("fit")
    assert next(iter(datamodule.test_dataloader())).normalized.all()


def test_normalising_twice_is_refused(setting: Any) -> None:
    datamodule = setting.datamodule()
    batch = next(iter(datamodule.train_dataloader()))
    for twice in (batch, batch[0], batch.to_data_list()[-1], datamodule.datasets["val"][0]):
        with pytest.raises(NormalizationError, match="normalised already"):
            datamodule.normalizer.normalize(twice)
        with pytest.raises(NormalizationError, match="normalised already"):
            NormalizeBatch(datamodule.normalizer)(twice)
    with pytest.raises(ConfigError, match="normalised already"):
        OFDFTDataModule.wrap(datamodule)
    wrapped = OFDFTDataModule.wrap(train=datamodule.datasets["train"])
    with pytest.raises(NormalizationError, match="normalised already"):
        wrapped.setup("fit")


def test_training_without_a_validation_split_goes_on_without_validation(setting: Any) -> None:
    datamodule, trainer = setting.datamodule(split=SplitConfig(train=1.0, val=0, test=0)), setting.trainer()
    model = TinyModel()
    with pytest.warns(UserWarning, match="Total length of `list` across ranks is zero"):
        trainer.fit(model, datamodule=datamodule)
    assert len(model.losses) == -(-len(datamodule.datasets["train"]) // datamodule.batch_size)
    with pytest.raises(SplitError, match="no 'val' split"):
        trainer.validate(model, datamodule=datamodule)


def test_a_missing_part_is_named(setting: Any) -> None:
    datamodule = setting.datamodule(split=SplitConfig(train=1.0, val=0, test=0))
    datamodule.setup("fit")
    with pytest.raises(SplitError, match=r"no 'test' split; they have \['train'\]"):
        datamodule.test_dataloader()
    for_tests = setting.datamodule(split=SplitConfig(train=0, val=0, test=1))
    with pytest.raises(SplitError, match=r"no 'train' split"):
        for_tests.setup("fit")


@pytest.mark.filterwarnings("ignore:You have overridden")  # Lightning does not know that ours calls the model's
def test_a_models_own_hook_is_called_after_normalisation(setting: Any) -> None:
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


def test_an_error_of_dtypes_names_the_option_of_the_layers(setting: Any) -> None:
    class Layered(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.atom_ref, self.linear = AtomRef(torch.zeros(5), 0.0, torch.zeros(999)), torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.linear(self.atom_ref(batch)[:, None]).sum()

    with pytest.raises(RuntimeError, match="dtype") as raised:
        setting.trainer(limit_train_batches=1).fit(Layered(), setting.datamodule())
    assert any("'AtomRef'" in note and "output_dtype='input'" in note for note in raised.value.__notes__)
