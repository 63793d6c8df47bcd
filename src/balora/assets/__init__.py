"""What ships with the package: a tiny pre-trained model and the quickstart's data."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def asset_path(name: str) -> Path:
    """Return where an asset lies, such as ``tiny_lm`` or ``quickstart/train.jsonl``.

    Raises:
        FileNotFoundError: If nothing of that name ships with the package.
    """
    root = Path(str(files(__name__)))
    path = root / name
    if not name or name.startswith(("/", ".")) or ".." in Path(name).parts or not path.exists():
        known = sorted(
            str(found.relative_to(root)) for found in root.glob("*/*") if found.suffix != ".pyc"
        )
        raise FileNotFoundError(
            f"`{name}` does not ship with balora. Its assets are: {', '.join(known)}."
        )
    return path
