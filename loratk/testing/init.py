"""The contract of an initialisation: factors as asked for, no effect at first, something that trains, and the same bits each time."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..lora import Init, LoraAdapter, LoraConfig, Seen, Start
from ..lora.inits.base import NEEDS
from ..plugins import Registry, default_registry, use_registry

SCALING = 0.75
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
FACTORS = {"lora_A", "lora_B"}


def check_init(init: Init, *, options: Mapping[str, Any] | None = None, sizes: tuple[int, int, int] = (8, 7, 2)) -> None:
    """Raise AssertionError with the first promise of `Init` that is broken, for a random weight (d, k) and random data.

    `options`: those of the init to check with. `sizes`: d, k and rank.
    """
    options = dict(options or {})
    assert isinstance(init.name, str), f"An init needs a name, found {init.name!r}."
    assert init.needs in (None, *NEEDS), f"needs must be None or one of {NEEDS}, found {init.needs!r}."
    assert not list(init.option_faults(dict(init.options))), "option_faults() must accept the init's own defaults."
    assert not list(init.option_faults(options)), f"option_faults() must accept {options}."
    assert list(init.option_faults({"no such option": 1})), "option_faults() must name an option that the init does not have."
    for dtype in (np.float32, np.float64):
        case = _Case(init, {**init.options, **options}, sizes, dtype)
        case.check_factors()
        case.check_product()
        case.check_training()
        case.check_ranks()
    _check_adapter(init, options, sizes)


class _Case:
    """An init on a random weight of one dtype, with random data where it needs some."""

    def __init__(self, init: Init, options: dict[str, Any], sizes: tuple[int, int, int], dtype: Any) -> None:
        self.init, self.options, self.dtype = init, options, np.dtype(dtype)
        self.d, self.k, self.rank = sizes
        self.weight = np.random.default_rng(0).standard_normal((self.d, self.k)).astype(dtype)
        faults = list(init.layer_faults(self.d, self.k, self.rank, SCALING, options))
        assert not faults, f"layer_faults() must accept a ({self.d}, {self.k}) weight at rank {self.rank}, or give other sizes: {faults}"
        self.start = self._start(1)

    def evidence(self) -> Any:
        """What the init needs, of random data."""
        rng = np.random.default_rng(2)
        if self.init.needs == "gradients":
            return rng.standard_normal((self.d, self.k))
        if self.init.needs is None:
            return None
        gatherer = self.init.gather(self.d, self.k, self.rank, self.options)
        for rows in (5, 1, 4 * self.d):
            gatherer.add(rng.standard_normal((rows, self.d)) * np.arange(1, self.d + 1))
        return gatherer

    def _start(self, seed: int) -> dict[str, np.ndarray]:
        start = Start(self.weight, self.rank, SCALING, np.random.default_rng(seed), self.options, self.evidence())
        made = self.init.start(start)
        return {"lora_A": made.lora_A, "lora_B": made.lora_B}

    def check_factors(self) -> None:
        """Shapes, dtype, values, seed; the weight is left alone."""
        before = np.random.default_rng(0).standard_normal((self.d, self.k)).astype(self.dtype)
        assert np.array_equal(self.weight, before), "start() must not change the weight."
        want = {"lora_A": (self.d, self.rank), "lora_B": (self.rank, self.k)}
        got = {name: array.shape for name, array in self.start.items()}
        assert got == want, f"start() must give the shapes {want}, found {got}."
        for name, array in self.start.items():
            assert array.dtype == self.dtype, f"start() must have the weight's dtype {self.dtype}, found {array.dtype} for {name}."
            assert np.isfinite(array).all(), f"start() must give finite numbers, found others in {name}."
            assert not np.shares_memory(array, self.weight), f"start() must copy what it takes from the weight: {name} is part of it."
            assert np.array_equal(array, self._start(1)[name]), f"start() must give the same {name} for the same seed, to the last bit."

    def check_product(self) -> None:
        """A B is 0, or the base is moved by it."""
        a, b = (array.astype(np.float64) for array in self.start.values())
        product, size = float(np.linalg.norm(a @ b)), float(np.linalg.norm(a) * np.linalg.norm(b))
        zero = product <= TOLERANCE[self.dtype.name] * size
        assert zero or self.init.moves_base, f"A B must be 0 for an init that does not say moves_base, found one of norm {product:.3g}."
        assert not zero or not self.init.moves_base, "An init that says moves_base must give an A B that is not 0."

    def check_training(self) -> None:
        """In each rank a factor that trains is met by one that is not 0, so that it has a gradient."""
        frozen = self.init.frozen(self.options)
        assert frozen < FACTORS, f"frozen() must name lora_A or lora_B or neither, found {sorted(frozen)}."
        columns, rows = np.abs(self.start["lora_A"]).max(axis=0) > 0, np.abs(self.start["lora_B"]).max(axis=1) > 0
        moves = (columns & ("lora_B" not in frozen)) | (rows & ("lora_A" not in frozen))
        dead = np.flatnonzero(~moves).tolist()
        assert not dead, f"The ranks {dead} have no gradient, and never will: what meets the factor that trains is 0."

    def check_ranks(self) -> None:
        """Other ranks that it finds are possible ones, for layers that there are."""
        seen = {name: Seen((self.d, self.k), self.rank, self.evidence()) for name in ("one", "two")}
        ranks = self.init.ranks(seen, self.options)
        assert ranks.keys() <= seen.keys(), f"ranks() must name layers that were seen, found {sorted(ranks)}."
        wrong = {name: rank for name, rank in ranks.items() if not isinstance(rank, int) or not 0 <= rank <= min(self.d, self.k)}
        assert not wrong, f"ranks() must give whole numbers from 0 to min(d, k) = {min(self.d, self.k)}, found {wrong}."


def _check_adapter(init: Init, options: dict[str, Any], sizes: tuple[int, int, int]) -> None:
    """In an adapter: without its data it says so, with it the adapter adds nothing at first."""
    case = _Case(init, {**init.options, **options}, sizes, np.dtype(np.float64))
    rank = sizes[2]
    with use_registry(_with(init)):
        config = LoraConfig(rank=rank, alpha=SCALING * rank, init={"name": init.name, **options})
        if init.needs is not None:
            said = "nothing"
            try:
                LoraAdapter(case.weight, config, name="layer")
            except ConfigError as error:
                said = str(error)
            assert init.needs in said, f"Without data an adapter must say that it needs the {init.needs}, found: {said}."
        adapter = LoraAdapter(case.weight, config, name="layer", evidence=case.evidence())
    moved = float(np.abs(adapter.delta(case.weight)).max())
    assert moved <= 1e-10, f"An adapter that has just been made must add nothing, found up to {moved:.3g}."


def _with(init: Init) -> Registry:
    """The default registry with this init in it."""
    registry = default_registry()
    return replace(registry, inits={**registry.inits, init.name: init})
