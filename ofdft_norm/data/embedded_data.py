"""Where the labels that come with the package lie; `provenance.yaml` beside them says how they were made."""

from pathlib import Path

EMBEDDED_DATA = Path(__file__).parent / "embedded"
