"""Report of a run: one HTML page from the files of its folder, which needs no other file."""

from __future__ import annotations

import base64
import csv
import html
from datetime import datetime
from pathlib import Path
from typing import Any

from ofdft_norm.data.files import read_yaml, write_text
from ofdft_norm.errors import ConfigError

# sections of the page, with the files of the run's folder that they show; pictures have a caption
SECTIONS = {
    "Results": {"results.txt": "", "energies.png": "Errors of predicted energies, molecule by molecule"},
    "Normalisation": {
        "gradient_ranges.png": "Largest gradient of every dimension, before and after normalisation",
        "normalization.png": "Standard deviations of coefficients and energies, before and after normalisation",
    },
    "References and statistics": {"summary.txt": ""},
    "Configuration": {"config.yaml": ""},
}
_STYLE = (
    ":root{color-scheme:light dark}body{max-width:62rem;margin:auto;padding:1rem;font:16px/1.5 system-ui,sans-serif}"
    "h1{overflow-wrap:anywhere}h2{border-bottom:1px solid #8888;margin-top:2rem}pre{overflow-x:auto;font-size:.85rem}"
    "figure{margin:1rem 0}img{width:100%;max-width:46rem;background:#fff}figcaption{opacity:.75;font-size:.9rem}"
)


def write_report(folder: Path, output: Path, overwrite: bool = False) -> Path:
    """Writes the page of a run's folder; returns its path."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: expected the folder of a run with config.yaml, which ofdft-norm train writes")
    if output.exists() and not (overwrite and output.is_file()):
        raise ConfigError(f"{output}: exists already; --overwrite replaces a file")
    try:
        page = _page(folder)
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}: config.yaml, run.yaml or results.csv is damaged or not of ofdft-norm train: {error}"
        ) from error
    write_text(output, page)
    return output


def _page(folder: Path) -> str:
    title = html.escape(f"Run {folder.resolve().name}")
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in _facts(folder))
    body = [f"<h1>{title}</h1>", f"<p><strong>{html.escape(_headline(folder))}</strong></p>", f"<ul>{facts}</ul>"]
    for section, files in SECTIONS.items():
        shown = [_element(folder / name, caption) for name, caption in files.items() if (folder / name).is_file()]
        if shown:
            body += [f"<section><h2>{section}</h2>", *shown, "</section>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    style = f'<style>{_STYLE}</style><link rel="icon" href="data:,">'
    return f'<!doctype html>\n<html lang="en"><head>{head}{style}</head>\n<body>' + "\n".join(body) + "</body></html>\n"


def _element(path: Path, caption: str) -> str:
    if path.suffix == ".png":
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    return f"<pre>{html.escape(path.read_text(encoding='utf-8'))}</pre>"


def _headline(folder: Path) -> str:
    """Returns the model's first error on the last held-out split in a sentence."""
    path = folder / "results.csv"
    if not path.is_file():
        return "The folder has no results: training has not ended."
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["predictor"] == "model"]
    if not rows:
        return "The run has no held-out split."
    name, value = next((name, float(value)) for name, value in rows[-1].items() if name.startswith("energy_mae"))
    unit = name.removeprefix("energy_mae_").replace("_per_", "/")
    return f"Mean absolute error of the energy on the {rows[-1]['split']} split: {value:.1f} {unit}."


def _facts(folder: Path) -> list[str]:
    config: Any = read_yaml(folder / "config.yaml")
    run: Any = read_yaml(folder / "run.yaml") if (folder / "run.yaml").is_file() else {}
    date = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime)
    data, kinds = config["data"], {}
    for name, node in {**data, "model": config["model"]}.items():
        if isinstance(node, dict):
            kinds[name] = str(node["_target_"]).rpartition(".")[2].removesuffix("Config").replace("nothing", "none")
    places = [f"{key}: {data['source'][key]}" for key in ("root", "dataset", "path", "paths") if key in data["source"]]
    return [
        f"Started on {date:%Y-%m-%d at %H:%M}, with ofdft-norm {run.get('package_version', '(unknown)')}",
        f"Data: {', '.join([kinds['source'], *places])}",
        f"Energy: {data['source'].get('energy_key', 'energy')} in {data['unit']}",
        f"Reference: {kinds['reference']}; rescaling: {kinds['rescaling']}",
        f"Model: {kinds['model']}, {config['trainer']['max_epochs']} epochs",
    ]
