"""Makes the report of a run, or of fitted statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.files import write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, OFDFTNormError
from ofdft_norm.normalization.atom_ref import AtomRefConfig
from ofdft_norm.normalization.build import build_normalizer
from ofdft_norm.normalization.dimension_wise_rescaling import RescalingConfig
from ofdft_norm.report.measured import Measured, measure
from ofdft_norm.report.page import Section, Table, render
from ofdft_norm.report.sections import (
    Subject,
    data_section,
    histogram_section,
    lambda_section,
    range_section,
    references_section,
    results_section,
    seen_table,
    sources_section,
    versions_section,
)
from ofdft_norm.settings import Settings
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics


class ReportConfig(Settings):
    """What a report is made of.

    Attributes:
        run_dir: The folder of a training run.
        statistics: Or fitted statistics, a zarr directory.
        output: Where to write; None: ``report.html`` in the run's folder, or in the present one.
        weigher_key: Of `statistics`: whose are shown.
    """

    run_dir: str | None = None
    statistics: str | None = None
    output: str | None = None
    weigher_key: str = "has_energy_label"
    config_key = ""

    def __post_init__(self) -> None:
        if (self.run_dir is None) == (self.statistics is None):
            raise ConfigError("give run_dir=<folder of a run> or statistics=<fitted statistics>, one of the two")


def make_report(config: ReportConfig) -> Path:
    """Writes a report; returns its path.

    Args:
        config: What is reported, and where to.

    Raises:
        ConfigError: If there is no such run, or it has no checkpoint of an `OFDFTDataModule` with a density basis.
        StatisticsError: If the statistics cannot be read.
    """
    if config.run_dir is not None:
        folder = Path(config.run_dir)
        title, sections = f"Report of the run {folder.resolve().name}", run_sections(folder)
    else:
        folder, path = Path(), Path(str(config.statistics))
        title, sections = f"Report of the statistics {path.name}", statistics_sections(path, config.weigher_key)
    output = folder / "report.html" if config.output is None else Path(config.output)
    write_text(output, render(title, sections))
    return output


def statistics_sections(path: Path, weigher_key: str) -> list[Section]:
    """Returns what statistics alone tell; they are rescaled as by default.

    Args:
        path: A zarr store of statistics.
        weigher_key: The weigher whose statistics are shown.

    Raises:
        ConfigError: If there are none, or they do not store their basis.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no statistics there (argument statistics)")
    statistics = DatasetStatistics(path)
    stored = statistics.attributes.get("basis_info")
    if stored is None:
        raise ConfigError(
            f"{path}: these statistics do not store their basis: report on a run instead (argument run_dir)"
        )
    basis_info = BasisInfo(**stored)
    unit = str(statistics.attributes.get("unit", "hartree"))
    normalizer = build_normalizer(statistics, basis_info, AtomRefConfig(), RescalingConfig(), weigher_key, unit=unit)
    subject = Subject(statistics, normalizer, basis_info, weigher_key)
    fitted_on = [[k, str(v)] for k, v in statistics.attributes.items() if isinstance(v, str | int | float)]
    return [
        Section("data", "Data set", [], [seen_table(subject)]),
        references_section(subject),
        lambda_section(subject, "the atomic reference and dimension-wise rescaling, with their default settings"),
        sources_section(subject),
        Section("configuration", "What was fitted", [], [Table("", ["attribute", "value"], fitted_on)]),
        versions_section(statistics, {}),
    ]


def run_sections(folder: Path) -> list[Section]:
    """Returns all sections of a run's report.

    Args:
        folder: The run's folder.

    Raises:
        ConfigError: If it lacks its configuration or checkpoint, or the data have no density basis.
    """
    candidates = (folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    checkpoint = next((path for path in candidates if path.is_file()), None)
    if checkpoint is None or not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder}: expected config.yaml and checkpoints/best.ckpt (or last.ckpt), as ofdft-norm train writes them "
            "(argument run_dir)"
        )
    config = (folder / "config.yaml").read_text()
    datamodule = OFDFTDataModule.load_from_checkpoint(checkpoint)
    if datamodule.basis_info is None:
        raise ConfigError(f"{folder}: a report needs density coefficients, and the run's data have no basis")
    key = datamodule.statistics_config.weigher_key
    subject = Subject(datamodule.statistics, datamodule.normalizer, datamodule.basis_info, key)
    measured, missing = Measured(), ""
    try:
        model_class: Any = get_class(yaml.safe_load(config)["model"]["_target_"])
        measured = measure(datamodule, model_class.load_from_checkpoint(checkpoint, "cpu").eval().predict)
    except (OFDFTNormError, FileNotFoundError) as error:
        missing = f"The samples could not be read: {error}"
    normalisation = f"reference: {datamodule.settings.reference}; rescaling: {datamodule.settings.rescaling}"
    run = yaml.safe_load((folder / "run.yaml").read_text()) if (folder / "run.yaml").is_file() else {}
    return [
        data_section(datamodule, subject, measured, missing),
        references_section(subject),
        lambda_section(subject, normalisation),
        sources_section(subject),
        histogram_section(measured, missing),
        results_section(folder, measured, missing),
        range_section(measured, missing),
        Section("configuration", "Configuration", ["The run's resolved configuration (config.yaml)."], listing=config),
        versions_section(subject.statistics, run),
    ]
