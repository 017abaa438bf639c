"""Where a path really leads."""

from pathlib import Path


def find_escape(path: Path, folder: Path) -> Path | None:
    """Return where a path of a folder really leads, if that is outside of the folder.

    The Hugging Face cache keeps a snapshot's files beside it, as `blobs/`; that counts as inside.

    Args:
        path: In the folder by its name; it need not exist.
        folder: Where it has to stay, links followed.

    Returns:
        The place outside, or None.
    """
    root = folder.resolve()
    try:
        place = path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        return path
    blobs = [above.parent / "blobs" for above in root.parents if above.name == "snapshots"]
    return None if any(place.is_relative_to(home) for home in (root, *blobs)) else place
