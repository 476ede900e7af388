"""Predicts with a checkpoint: ``ofdft-norm predict ckpt_path=run.ckpt data/source=label_files ...``.

See ``configs/predict.yaml``.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from ofdft_norm.config.readable_errors import config_dir, readable_errors


@readable_errors
@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="predict")
def main(cfg: DictConfig) -> None:
    """Runs one prediction.

    Args:
        cfg: The composed configuration; ``predict.yaml`` says what it has.
    """
    from ofdft_norm.example.prediction import predict  # not before the configuration is composed: it takes seconds

    predict(cfg)


if __name__ == "__main__":
    main()
