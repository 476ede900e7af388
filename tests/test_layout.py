"""Tests are found by their module's name: each module has a file of tests of that name, or stands in a table."""

from __future__ import annotations

import pytest

from tests.test_imports import MODULES, ROOT

# modules that do their work inside of another one's, and are tested there
TESTED_IN = {
    "config/resolvers": "hydra/test_template_app",
    "data/ase_frames": "data/test_ase_files",
    "data/checked_samples": "lightning/test_wrapped_data",
    "data/dataset_info": "hydra/test_structures25",
    "data/elements": "normalization/test_reference_summary",
    "data/epoch_sampler": "lightning/test_processes",
    "data/fields": "transforms/test_basis_transforms",
    "data/in_unit": "test_units",
    "data/irreps": "data/test_basis_info",
    "data/joined_batch": "data/test_of_dataset",
    "data/label_source": "hostile/test_split",
    "data/lazy_datasets": "lightning/test_datamodule",
    "data/molecule_names": "hostile/test_split",
    "data/packed_files": "data/test_packed_writer",
    "data/plain_files": "hostile/test_settings",
    "data/pyscf_import": "labelling/test_kohn_sham",
    "data/raw_datasets": "lightning/test_checkpoint",
    "data/sample_file": "example/test_prediction",
    "data/scf_iterations": "data/test_of_dataset",
    "data/split_files": "hostile/test_split",
    "data/zarr_metadata": "data/test_zarr_v2",
    "example/callbacks": "example/test_training",
    "example/geometry": "example/test_density_network",
    "example/run_record": "hydra/test_runs",
    "example/structures": "example/test_potential",
    "labelling/provenance": "labelling/test_embedded",
    "mixin": "lightning/test_checkpoint",
    "normalization/affine": "normalization/test_normalizer",
    "normalization/build": "statistics/test_cache",
    "normalization/normalizer_state": "lightning/test_checkpoint",
    "normalization/reference": "normalization/test_atom_ref",
    "normalization/reference_files": "normalization/test_given_references",
    "normalization/transforms": "data/test_transformed_dataset",
    "report/figures": "report/test_report",
    "report/measured": "report/test_report",
    "report/page": "report/test_report",
    "report/sections": "report/test_report",
    "statistics/arrays": "statistics/test_fit",
    "statistics/config": "test_settings",
    "statistics/counts": "statistics/test_moments",
    "statistics/energy_fit": "statistics/test_moments",
    "statistics/references": "statistics/test_fit",
    "statistics/zarr_store": "statistics/test_dataset_statistics",
    "transforms/basis_change": "transforms/test_basis_transforms",
    "transforms/molecule": "transforms/test_overlap",
    "version": "lightning/test_checkpoint",
}
TESTS = {path.relative_to(ROOT / "tests").with_suffix("").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
# command lines and pages of the guide are tested as wholes; benchmarks measure
APART = {"benchmarks", "commands", "guide"}
OF_PACKAGE = [path for path in MODULES if path.name != "__init__.py" and path.parent.name not in APART]


@pytest.mark.parametrize(
    "module", [path.relative_to(ROOT / "ofdft_norm").with_suffix("").as_posix() for path in OF_PACKAGE]
)
def test_a_modules_tests_are_found_by_its_name(module: str) -> None:
    named = f"test_{module.rpartition('/')[2]}"
    of_its_name = any(test.rpartition("/")[2] == named for test in TESTS)
    assert of_its_name != (module in TESTED_IN), f"{module}: {named}.py, or an entry of TESTED_IN (not both)"
    assert of_its_name or TESTED_IN[module] in TESTS


def test_the_table_has_no_modules_that_are_gone() -> None:
    assert all((ROOT / "ofdft_norm" / f"{module}.py").is_file() for module in TESTED_IN)
