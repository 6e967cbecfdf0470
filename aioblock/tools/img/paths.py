"""Names of backing files, as paths."""

import os

__all__ = ["actual_path"]


def actual_path(image: str, name: str) -> str | None:
    """A backing file's name as it stands in an image, taken from the directory of the file `image` if it is relative.

    None: it is relative, and the image has no file name.
    """
    head, colon, _ = name.partition(":")
    if (colon and "/" not in head) or os.path.isabs(name):
        return name
    if not image:
        return None
    return os.path.join(os.path.dirname(image.removeprefix("file:")), name)
