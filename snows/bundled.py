"""Where that lies which comes along: networks, images, recordings and the app; beside `snows` in a checkout, in it where it is
installed."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "_explorer"  # where the wheel has it, see `force-include` in pyproject.toml
HOME = _INSTALLED if _INSTALLED.exists() else _PACKAGE.parent
ASSETS = HOME / "assets"
EXPLORER = HOME / "app/main.py"
