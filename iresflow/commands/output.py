"""Files and directories that have their name only when they are whole."""

from pathlib import Path

__all__ = ["partial_of"]


def partial_of(path: Path) -> Path:
    """Beside a file or directory, where it is written to until it is whole."""
    return path.with_name(f"{path.name}.partial")
