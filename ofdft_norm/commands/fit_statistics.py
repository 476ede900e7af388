"""Fits dataset statistics, alone or under torchrun: ``ofdft-norm fit data=ofdft_norm``.

See ``configs/fit_statistics.yaml``. What training would fit at its start is fitted here, by as many processes as
``torchrun --nproc-per-node N`` starts, and training finds it by its fingerprint.
"""

from __future__ import annotations

import logging
import os

import hydra
from omegaconf import DictConfig

from ofdft_norm.config.readable_errors import config_dir, readable_errors


@readable_errors
@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="fit_statistics")
def main(cfg: DictConfig) -> None:
    """Fits, or finds, the statistics of the training split, and prints them on rank 0.

    Args:
        cfg: The composed configuration, of which `data` is used.
    """
    import torch.distributed as dist  # not before the configuration is composed: it takes seconds

    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # the table is printed below
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed:
        dist.init_process_group("gloo")
    try:
        datamodule = hydra.utils.instantiate(cfg.data)
        datamodule.setup("fit")
        statistics = datamodule.statistics
        if not distributed or dist.get_rank() == 0:
            print(datamodule.summary())
            print(f"statistics: {statistics.path}")
    finally:
        if distributed:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
