"""The presets: files of options that travel with the package."""

from pathlib import Path

from iresflow.data import VECTOR_NAMES

__all__ = ["described", "find", "names", "of_data"]

FOLDER = Path(__file__).parents[1] / "configs"

OF_DATA = {
    **dict.fromkeys(VECTOR_NAMES, "toy2d"),
    "digits": "digits",
    "table": "table",
    "folder": "folder",
    "mnist": "mnist-small",
    "fashion-mnist": "fashion-mnist",
    "cifar10": "cifar10-small",
    "cifar100": "cifar10-small",
}
"""The preset of each data set: one that two CPU cores can train."""


def names() -> list[str]:
    """The names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a preset, or a file of one's own: ``mnist-small`` or ``path/to/mine.yaml``.

    Raises:
        ValueError: there is neither.
    """
    if name in names():
        return FOLDER / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        what = "is no file" if path.exists() else "is no file, and no preset"
        raise ValueError(f"{name} {what}; the presets are {', '.join(names())}")
    return path


def described(file: Path) -> str:
    """A configuration file in words: the name of a preset, or the path."""
    return f"preset {file.stem}" if file.parent == FOLDER else str(file)


def of_data(name: object) -> str | None:
    """The preset for a data set; None where there is none."""
    return OF_DATA.get(name) if isinstance(name, str) else None
