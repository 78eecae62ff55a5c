"""Alpha of a file that PEFT wrote, from the adapter_config.json beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loratk.errors import ConfigError, FormatError, StoreError
from loratk.io import strict_json

CONFIG = "adapter_config.json"
LIMIT = 1 << 20


def alpha_beside(path: Path) -> tuple[float, bool] | None:
    """lora_alpha and use_rslora of the config in the file's folder; None if there is none.

    Raises FormatError for one that is broken or no LoRA, ConfigError for an alpha_pattern, whose expressions are not run here.
    """
    config = path.parent / CONFIG
    if not config.is_file():
        return None
    try:
        if config.stat().st_size > LIMIT:
            raise ValueError(f"it is longer than {LIMIT} bytes")
        record: Any = strict_json.loads(config.read_text(encoding="utf-8"))
        alpha, root, kind = record["lora_alpha"], record.get("use_rslora", False), record.get("peft_type", "LORA")
    except OSError as error:
        raise StoreError(f"cannot read '{config}': {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"'{config}' must be a JSON object with lora_alpha: {error!r}") from error
    if type(alpha) not in (int, float) or type(root) is not bool or kind != "LORA":
        raise FormatError(f"'{config}' must have a number lora_alpha, a bool use_rslora and the peft_type 'LORA', found {record!r:.200}")
    if record.get("alpha_pattern"):
        raise ConfigError(f"'{config}' has an alpha_pattern; give each alpha with the option alpha, such as '*.q_proj=32,16'")
    return float(alpha), root
