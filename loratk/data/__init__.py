"""Data that ships with loratk: real, small, and free to use. Where it comes from stands in the text file beside it."""

import hashlib
from importlib.resources import as_file, files

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"

Bytes = npt.NDArray[np.uint8]


def digits() -> tuple[Bytes, Bytes]:
    """Handwritten digits: images (1797, 8, 8) with values 0 (paper) to 16 (ink), labels (1797,) 0 to 9; both uint8.

    The test set of Alpaydin and Kaynak 1998, UCI Machine Learning Repository, DOI 10.24432/C50P49, CC BY 4.0; see
    `citation`. Raises FormatError if the installed file is damaged.
    """
    with as_file(files(__name__) / "digits.npz") as path:
        try:
            with np.load(path, allow_pickle=False) as archive:
                images, labels = archive["images"], archive["labels"]
            intact = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == DIGITS_SHA256
        except Exception:  # a damaged archive fails in as many ways as zipfile and numpy know
            intact = False
    if not intact:
        raise FormatError(f"'{path}' is not the file of digits that loratk ships; install loratk again.")
    return images, labels


def citation() -> str:
    """Who made the digits, where they come from, and their licence."""
    return (files(__name__) / "digits.txt").read_text(encoding="utf-8")
