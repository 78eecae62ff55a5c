"""The built-in layer types, methods and initialisations, registered like any plugin's."""

from typing import Any

from ..hookspecs import hookimpl
from .inits import Init
from .inits.chance import Gaussian, Kaiming, Orthogonal
from .inits.corda import Corda
from .inits.eva import Eva
from .inits.lora_ga import LoraGa
from .inits.spectral import Mica, Olora, Pissa
from .layer_types import EmbeddingType, LayerType, LinearType
from .methods import Method
from .methods.adalora import Adalora
from .methods.dora import Dora
from .methods.dylora import Dylora
from .methods.elastic import Elastic
from .methods.ia3 import Ia3
from .methods.loha import Loha
from .methods.lokr import Lokr
from .methods.lora import Lora
from .methods.lora_gain import LoraGain
from .methods.sora import Sora
from .methods.sparse import Sparse
from .methods.vera import Vera


@hookimpl
def register_layer_types() -> list[LayerType[Any]]:
    """Linear and Embedding."""
    return [LinearType(), EmbeddingType()]


@hookimpl
def register_methods() -> list[Method]:
    """LoRA and its relatives."""
    return [Lora(), LoraGain(), Dora(), Loha(), Lokr(), Ia3(), Vera(), Sparse(), Adalora(), Elastic(), Sora(), Dylora()]


@hookimpl
def register_inits() -> list[Init]:
    """From chance, from the weight, and from data."""
    return [Kaiming(), Gaussian(), Orthogonal(), Pissa(), Olora(), Mica(), Eva(), Corda(), LoraGa()]
