"""Makes loratk/data/digits.npz out of the digits.csv.gz inside a scikit-learn wheel: `python make_digits.py WHEEL DST`.

scikit-learn's file is the test set of the UCI data set, one image a line: 64 pixels, then the label.
"""

import gzip
import hashlib
import sys
import zipfile

import numpy as np

SOURCE = "sklearn/datasets/data/digits.csv.gz"
SOURCE_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


def main(wheel: str, destination: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read(SOURCE)
    assert hashlib.sha256(packed).hexdigest() == SOURCE_SHA256, "scikit-learn's copy has changed: compare it with the UCI original"
    table = np.array([line.split(",") for line in gzip.decompress(packed).decode().split()], np.float64)
    rows = table.astype(np.uint8)
    assert table.shape == (1797, 65)
    assert (rows == table).all()
    np.savez_compressed(destination, images=rows[:, :64].reshape(-1, 8, 8), labels=rows[:, 64])
    print(hashlib.sha256(rows[:, :64].tobytes() + rows[:, 64].tobytes()).hexdigest(), "is the SHA-256 of the images and labels")


if __name__ == "__main__":
    main(*sys.argv[1:])
