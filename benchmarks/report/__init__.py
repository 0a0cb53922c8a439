"""Results in the documents: tables, figures, and what is slower than it was."""

from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"
