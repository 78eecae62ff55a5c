"""loratk: train, merge, convert, inspect and serve low-rank adapters, without a deep-learning framework.

Everything here is loaded on first use, so `import loratk` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .algebra.combining import combine
    from .algebra.conversion import lora_of
    from .algebra.extraction import extract
    from .algebra.interference import compare
    from .algebra.resizing import resize
    from .autograd import Tensor, detect_anomaly, no_grad, ops
    from .convert import merge, unmerge
    from .errors import LoratkError
    from .exchange import AdapterState, diff, list_adapters, load_adapter, read_adapters, save_adapter, write_adapters
    from .hookspecs import hookimpl
    from .kernels import get_backend
    from .kernels.memory import release_memory
    from .kernels.runtime import get_num_threads, num_threads, set_num_threads
    from .lora import LayerType, LoraAdapter, LoraConfig, LoraLayer, LoraLinear, LoraModel, Method, choose_alpha, lora_plus
    from .lora.report import efficiency
    from .nn import Module
    from .plugins import build_registry
    from .train import Trainer

__version__ = "0.1.0"

_HOME = {
    "algebra.combining": "combine",
    "algebra.conversion": "lora_of",
    "algebra.extraction": "extract",
    "algebra.interference": "compare",
    "algebra.resizing": "resize",
    "autograd": "Tensor detect_anomaly no_grad ops",
    "convert": "merge unmerge",
    "errors": "LoratkError",
    "exchange": "AdapterState diff list_adapters load_adapter read_adapters save_adapter write_adapters",
    "hookspecs": "hookimpl",
    "kernels": "get_backend",
    "kernels.memory": "release_memory",
    "kernels.runtime": "get_num_threads num_threads set_num_threads",
    "lora": "LayerType LoraAdapter LoraConfig LoraLayer LoraLinear LoraModel Method choose_alpha lora_plus",
    "lora.report": "efficiency",
    "nn": "Module",
    "plugins": "build_registry",
    "train": "Trainer",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "AdapterState", "LayerType", "LoraAdapter", "LoraConfig", "LoraLayer", "LoraLinear", "LoraModel", "LoratkError", "Method", "Module",
    "Tensor", "Trainer", "__version__", "build_registry", "choose_alpha", "combine", "compare", "detect_anomaly", "diff", "efficiency",
    "extract", "get_backend", "get_num_threads", "hookimpl", "list_adapters", "load_adapter", "lora_of", "lora_plus", "merge", "no_grad",
    "num_threads", "ops", "read_adapters", "release_memory", "resize", "save_adapter", "set_num_threads", "unmerge", "write_adapters",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'loratk' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
