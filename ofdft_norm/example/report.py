"""Report of a run: one HTML page from the files of its folder, without links to other files."""

import base64
import html
import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ofdft_norm.data.files import read_plain, write_text
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.metrics import name_error
from ofdft_norm.example.results import MODEL, read_csv
from ofdft_norm.units import find_unit

# sections of the page, with the files of the run's folder that they show; pictures have a caption
SECTIONS = {
    "Results": {"results.txt": ""},
    "Learning curves": {"learning_curves.png": "Loss of the training split and errors of the validation split"},
    "Parity": {"parity.png": "Predictions against labels of held-out splits"},
    "Density optimisation": {
        "density_optimization.txt": "",
        "density_optimization.png": "Energy and gradient against steps, from the initial guess",
    },
    "References and lambda": {
        "summary.txt": "",
        "normalization.png": "Standard deviations of coefficients and energies, before and after normalisation",
        "gradient_ranges.png": "Largest gradient of every dimension, before and after normalisation",
    },
    "Configuration": {"config.yaml": ""},
}
_PLACES = ("root", "dataset", "path", "paths")  # keys of a source
_KINDS = {"AtomRef": "atomic", "LinearReferences": "linear", "Rescaling": "dimension-wise", "nothing": "none"}
_STYLE = (
    ":root{color-scheme:light dark}body{max-width:62rem;margin:auto;padding:1rem;font:16px/1.5 system-ui,sans-serif}"
    "h1{overflow-wrap:anywhere}h2{border-bottom:1px solid #8888;margin-top:2rem}pre{overflow-x:auto;font-size:.85rem}"
    "figure{margin:1rem 0}img{width:100%;max-width:46rem;background:#fff}figcaption{opacity:.75;font-size:.9rem}"
    "table{border-collapse:collapse;font-size:.85rem}td{padding:0 1rem 0 0;vertical-align:top;overflow-wrap:anywhere}"
)


def write_report(folder: Path, output: Path, overwrite: bool = False) -> Path:
    """Writes the page of a run's folder; returns its path."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: expected the folder of a run with config.yaml, which ofdft-norm train writes")
    if output.exists() and not (overwrite and output.is_file()):
        raise ConfigError(f"{output}: exists already (config: overwrite=true replaces it)")
    try:
        page = _make_page(folder)
    except (AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}: config.yaml, run.yaml or results.csv is damaged, or not written by ofdft-norm train: {error}"
        ) from error
    write_text(output, page)
    return output


def _make_page(folder: Path) -> str:
    title, config = html.escape(f"Run {folder.resolve().name}"), read_plain(folder / "config.yaml")
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in _describe_run(folder, config))
    headline = html.escape(_describe_result(folder, config))
    body = [f"<h1>{title}</h1>", f"<p><strong>{headline}</strong></p>", f"<ul>{facts}</ul>"]
    for section, files in SECTIONS.items():
        shown = [_make_element(folder / name, caption) for name, caption in files.items() if (folder / name).is_file()]
        if shown:
            body += [f"<section><h2>{section}</h2>", *shown, "</section>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    style = f'<style>{_STYLE}</style><link rel="icon" href="data:,">'
    return f'<!doctype html>\n<html lang="en"><head>{head}{style}</head>\n<body>' + "\n".join(body) + "</body></html>\n"


def _make_element(path: Path, caption: str) -> str:
    if path.suffix == ".png":
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if path.suffix == ".yaml":
        rows = _list_rows(read_plain(path))
        cells = (f"<tr><td>{html.escape(key)}</td><td>{html.escape(text)}</td></tr>" for key, text in rows)
        return f"<table>{''.join(cells)}</table>"
    return f"<pre>{html.escape(path.read_text(encoding='utf-8'))}</pre>"


def _list_rows(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields the key and the value, in words, of every setting below a node of a run's configuration."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            if name != "_target_":
                yield from _list_rows(value, f"{key}.{name}".strip("."))
            elif not key.endswith(kind := _name_kind(value)):  # the kind of data.loader is "loader"
                yield key, kind
    elif isinstance(node, list) and any(isinstance(value, dict) for value in node):
        for i, value in enumerate(node):
            yield from _list_rows(value, f"{key}[{i}]")
    else:
        yield key, _format_value(node)


def _name_kind(path: str) -> str:
    """Returns the name of a class or function in words: ``package.LocalFrames`` is "local frames"."""
    name = path.rpartition(".")[2].removesuffix("Config")
    words = re.sub("(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", name)
    return _KINDS.get(name, words.lower())


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | dict):
        return ", ".join(map(_format_value, value)) or "none"
    return "none" if value is None else str(value)


def _describe_result(folder: Path, config: Any) -> str:
    """Returns the model's error on the test split, or on the last held-out one, in a sentence."""
    if not (folder / "results.csv").is_file():
        return "The folder has no results: training has not ended."
    unit = config["data"]["unit"]
    found = read_csv(folder / "results.csv", unit)
    rows = {row.split: row for row in found if row.predictor == MODEL and not row.group}
    if not rows:
        return "The run has no held-out split."
    split = "test" if "test" in rows else list(rows)[-1]
    errors, small = rows[split].errors, find_unit(unit).small
    error = errors.get(name_error("energy_mae_ground_state", unit), math.nan)
    what = "energy" if math.isnan(error) else "energy at the ground state"
    error = errors[name_error("energy_mae", unit)] if math.isnan(error) else error
    return f"Mean absolute error of the {what} on the {split} split: {error:.1f} {small}."


def _describe_run(folder: Path, config: Any) -> list[str]:
    run: Any = read_plain(folder / "run.yaml") if (folder / "run.yaml").is_file() else {}
    date = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime)
    data, nodes = config["data"], {**config["data"], "model": config["model"]}
    kinds = {name: _name_kind(str(node["_target_"])) for name, node in nodes.items() if isinstance(node, dict)}
    places = [f"{key} {_format_value(data['source'][key])}" for key in _PLACES if key in data["source"]]
    return [
        f"Started on {date:%Y-%m-%d at %H:%M}, with ofdft-norm {run.get('package_version', '(unknown)')}",
        f"Data set: {', '.join([kinds['source'], *places])}",
        f"Learned energy: {data['source'].get('energy_key', 'energy')}, in {data['unit']}",
        f"Reference: {kinds['reference']}; rescaling: {kinds['rescaling']}",
        f"Model: {kinds['model']}, {config['trainer']['max_epochs']} epochs",
    ]
