"""What files made to do harm are held to."""

import time
import tracemalloc

import pytest

from loratk.errors import FormatError
from loratk.exchange import load_adapter
from loratk.plugins import default_registry


def refused(path, format=None):
    """What a file is refused with; in two seconds and 4 MiB at most."""
    registry = default_registry()  # imports are not what is measured
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            load_adapter(path, format=format, registry=registry)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 2
    assert peak < 4 << 20
    return str(caught.value)
