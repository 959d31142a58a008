"""Where the files of `templates/` lie: inside the installed package, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path


def template_folder() -> Path:
    """The folder that holds `prompts/`, `starters/` and `report/`. Raises FileNotFoundError where it lacks."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / "prompts").is_dir():
            return folder
    raise FileNotFoundError(f"no templates beside {package}: the installation is incomplete")
