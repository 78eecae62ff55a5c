"""What every kernel means, in plain NumPy: the specification, and the oracle of every test.

One file a family. A kernel takes arrays by position and everything else by keyword, and returns new arrays; only the
optimiser updates write into their arguments. Floating arrays are float32 or float64, all of one dtype in a call, and
the result has that dtype. Any strides and any zero-size axis are allowed.
"""

from . import chain, conv, dora, elementwise, gemm, grouped, lora, norm, optim, reduce, shape, softmax, sparse

FAMILIES = (gemm, lora, dora, chain, grouped, elementwise, reduce, shape, sparse, softmax, norm, conv, optim)
KERNELS = {name: getattr(family, name) for family in FAMILIES for name in family.__all__}
