"""Kills fits at many moments, and starts several at once; writes what was found to a JSON file.

python _killed_fits.py <folder with labels/ and basis_info.json> <report>
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402

from ofdft_norm import DatasetStatistics, OFDFTDataModule  # noqa: E402
from ofdft_norm.config import LabelFiles, Split, Statistics  # noqa: E402

FOLDER = Path(sys.argv[1])
torch.set_num_threads(1)  # children that are forked must not wait for their parent's threads


def fit(cache: Path, out: Path) -> None:
    datamodule = OFDFTDataModule(
        LabelFiles(paths=str(FOLDER / "labels"), basis_info=str(FOLDER / "basis_info.json")),
        split=Split(train=1, val=0, test=0),
        statistics=Statistics(dir=str(cache), progress=False),
    )
    datamodule.setup("fit")
    datamodule.statistics.save_to(out)


def start(cache: Path, out: Path) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            fit(cache, out)
            status = 0
        finally:
            os._exit(status)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    begin = time.perf_counter()
    codes = [exit_code(start(FOLDER / "cache_0", FOLDER / "expected.zarr"))]
    duration = time.perf_counter() - begin
    expected = DatasetStatistics(FOLDER / "expected.zarr")

    cache = FOLDER / "cache_1"
    killed, whole, half, left_aside = 0, 0, 0, 0
    for i in range(20):
        child = start(cache, FOLDER / f"killed_{i}.zarr")
        time.sleep(duration * (i + 1) / 20)
        os.kill(child, signal.SIGKILL)
        killed += exit_code(child) == -signal.SIGKILL
        for entry in cache.glob("*.zarr") if cache.exists() else ():
            same = DatasetStatistics(entry).equals(expected)
            whole, half = whole + same, half + (not same)
            os.rename(entry, FOLDER / f"found_{i}")
        left_aside += len(list(cache.glob(".*.zarr.*"))) if cache.exists() else 0
        if i % 5 == 4:  # whoever comes next neither fails nor uses half of anything
            out = FOLDER / f"next_{i}.zarr"
            codes.append(exit_code(start(cache, out)))
            half += not DatasetStatistics(out).equals(expected)
            for entry in cache.glob("*.zarr"):
                os.rename(entry, FOLDER / f"renewed_{i}")

    outs = [FOLDER / f"together_{i}.zarr" for i in range(3)]
    children = [start(FOLDER / "cache_2", out) for out in outs]
    codes += [exit_code(child) for child in children]
    half += sum(not DatasetStatistics(out).equals(expected) for out in outs)
    report = {
        "codes": codes,
        "killed": killed,
        "whole": whole,
        "half": half,
        "left_aside": left_aside,
        "entries": [len(list((FOLDER / name).glob("*.zarr"))) for name in ("cache_0", "cache_2")],
    }
    Path(sys.argv[2]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
