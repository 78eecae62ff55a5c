import hashlib
from contextlib import nullcontext
from importlib.resources import files

import numpy as np
import pytest

import loratk.data
from loratk.errors import FormatError


def test_digits_are_the_uci_test_set():
    images, labels = loratk.data.digits()
    assert images.shape == (1797, 8, 8)
    assert labels.shape == (1797,)
    assert images.dtype == labels.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_bytes_are_those_that_the_conversion_script_printed():
    images, labels = loratk.data.digits()
    got = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert got == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_the_licence_ships_beside_the_data():
    text = loratk.data.citation()
    assert "10.24432/C50P49" in text
    assert "CC BY 4.0" in text
    assert "Alpaydin" in text


@pytest.mark.parametrize("place", [0, 100, 20000, -3])
def test_a_damaged_file_is_refused(place, tmp_path, monkeypatch):
    whole = bytearray((files("loratk.data") / "digits.npz").read_bytes())
    whole[place] ^= 0xFF
    (tmp_path / "digits.npz").write_bytes(whole)
    monkeypatch.setattr(loratk.data, "as_file", lambda _: nullcontext(tmp_path / "digits.npz"))
    with pytest.raises(FormatError, match="install loratk again"):
        loratk.data.digits()
