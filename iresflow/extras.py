"""Libraries that only some uses need: imported by those, and named with their extra if missing."""

from importlib import import_module
from types import ModuleType

from iresflow.errors import MissingLibraryError

__all__ = ["import_extra"]


def import_extra(module: str, extra: str) -> ModuleType:
    """A module of a library that an extra of the package installs.

    Arguments:
        module: Its full name.
        extra: The extra, as in ``pip install 'iresflow[extra]'``.

    Raises:
        MissingLibraryError: the library is not installed. One that is, and fails in its own
            imports, says so itself.
    """
    library = module.partition(".")[0]
    try:
        import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise MissingLibraryError(library, extra) from None
    return import_module(module)
