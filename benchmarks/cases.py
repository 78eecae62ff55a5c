"""The table of cases. A step is forward, loss, backward and AdamW; of a `linear` case forward and backward, of a `forward` case that."""

from .case import Case
from .convolution import Convolution
from .forward import Forward
from .layer import Layer
from .mixed import Mixed
from .network import Network

DEPTHS = (8, 16, 32, 64, 128, 256)
BATCHES = (64, 128, 256, 512, 1024, 2048)

CASES: list[Case] = [
    Layer("linear-2048-1024x1024-r16", 2048),
    Layer("linear-2048-1024x1024-r16-one-thread", 2048, threads=1),
    Layer("linear-64-1024x1024-r16", 64),
    Layer("linear-512-768x768-r8", 512, d=768, k=768, rank=8),
    Network("classifier-64-784-512-256-10-r16", 64, sizes=(784, 512, 256, 10)),
    Network("classifier-64-64-128-64-10-r8", 64, sizes=(64, 128, 64, 10), rank=8),
    Network("layers-24-of-256-batch-32-r16", 32, sizes=(256,) * 25),
    Forward("forward-1-4096x4096-r16", 1, d=4096, k=4096),
    Layer("dora-2048-1024x1024-r16", 2048, dora=True, trains=True),
    Convolution("conv2d-16-32x32-64-64-r16", 16),
    Mixed("mixed-64-of-32-adapters-beside-r34", 64, rank=34),
    Mixed("mixed-64-of-32-adapters-beside-r64", 64, rank=64),
    Mixed("mixed-64-of-32-adapters-backward-beside-r34", 64, rank=34, trains=True, beside_peer=False),
    Forward("java-forward-64-1024x1024-r16", 64),
    Forward("java-forward-64-1024x1024-r16-one-thread", 64, threads=1),
    *(Network(f"depth-{depth}-of-256-batch-32-r16", 32, sizes=(256,) * (depth + 1), beside_peer=False) for depth in DEPTHS),
    *(Network(f"batch-{rows}-784-512-256-10-r16", rows, sizes=(784, 512, 256, 10), beside_peer=False) for rows in BATCHES),
]

MEMORY = ["linear-2048-1024x1024-r16", "batch-2048-784-512-256-10-r16", "layers-24-of-256-batch-32-r16"]
START_UP = "classifier-64-784-512-256-10-r16"


def named(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
