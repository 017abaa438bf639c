"""The cache folder, and how something gets into it whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from bigft.errors import DataError


def default_cache_dir(cache_dir: str | None) -> Path:
    """Choose the cache folder: the given one, `$XDG_CACHE_HOME/bigft`, or `~/.cache/bigft`."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bigft"


def write_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder beside `folder` and give it that name when it is complete.

    Of several processes that do this at once the first one wins and the others drop their work,
    so what `write` makes has to depend on the folder's name only.

    Raises:
        DataError: The cache cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    except OSError as error:
        raise _build_cache_error(folder, error) from error
    try:
        write(unfinished)
        unfinished.chmod(0o755)  # mkdtemp makes it private; a cache may be shared.
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise _build_cache_error(folder, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader sees the old text or the new one.

    Raises:
        DataError: The cache cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=".unfinished-", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError as error:
        raise _build_cache_error(path, error) from error


def _build_cache_error(path: Path, error: OSError) -> DataError:
    return DataError(
        f"the data cache {path.parent} cannot be written: {error.strerror or error}; "
        "choose another folder with --data.loading.cache_dir"
    )
