"""LyCORIS makes the same updates of the files that loratk writes."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with LyCORIS on it")
lycoris = pytest.importorskip("lycoris", reason="LyCORIS is not installed; these tests compare with it")

from lycoris.modules.locon import LoConModule  # noqa: E402
from lycoris.modules.loha import LohaModule  # noqa: E402
from lycoris.modules.lokr import LokrModule  # noqa: E402

from loratk.exchange import load_adapter, save_adapter  # noqa: E402
from loratk.io import open_safetensors, write_safetensors  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "data/kohya"
CLASSES = {"lora": LoConModule, "loco": LoConModule, "loha": LohaModule, "lokr": LokrModule}
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors") if path.stem[:4] in CLASSES and path.stem != "lora-dora-in")


@pytest.mark.parametrize(
    ("name", "factor"),
    # LyCORIS 4.1.3 takes a size of lokr_w2_a for the rank where there is a core, and cannot load its own file.
    [(name, factor) for name in NAMES for factor in ("no", "yes") if (name, factor) != ("lokr-tucker", "no")],
)
def test_lycoris_reads_what_we_write(tmp_path, name, factor):
    """Its own files through loratk, as they are and made LoRA."""
    with open_safetensors(GOLDEN / f"{name}.safetensors") as reader:
        arrays = {key: reader.array(key) for key in reader.names()}
    want = {key.removeprefix("want."): arrays.pop(key) for key in list(arrays) if key.startswith("want.")}
    write_safetensors(tmp_path / "x.safetensors", arrays, {})
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": want["base"]}, {})
    reading = load_adapter(tmp_path / "x.safetensors", base=tmp_path / "base.safetensors", options={"factor": factor})
    save_adapter(tmp_path / "y.safetensors", reading.states, format="kohya")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        state = {key: torch.from_numpy(reader.array(key)) for key in reader.names()}
        assert reader.metadata["ss_network_module"] == ("networks.lora" if name in PLAIN or _plain(name, factor) else "lycoris.kohya")
    shape = want["base"].shape
    layer = torch.nn.Linear(shape[1], shape[0]) if len(shape) == 2 else torch.nn.Conv2d(shape[1], shape[0], shape[2])
    layer.weight.data = torch.from_numpy(want["base"])
    cls = next(cls for cls in CLASSES.values() if cls.algo_check(state, "lora_unet_m"))
    with torch.no_grad():
        module = cls.make_module_from_state_dict("lora_unet_m", layer, *cls.extract_state_dict(state, "lora_unet_m"))
        got = module.get_diff_weight(1, shape)[0] if cls is LoConModule else module.get_weight(shape)
        np.testing.assert_allclose(got.numpy(), want["diff"], rtol=1e-4, atol=1e-5)
        if "merged" in want:
            merged = module.apply_weight_decompose(layer.weight + got).numpy()
            np.testing.assert_allclose(merged, want["merged"], rtol=1e-4, atol=1e-4)


PLAIN = ("lora-linear", "lora-rslora", "locon-conv1", "locon-conv3")


def _plain(name, factor):
    """Whether a file is of LoRA alone after reading."""
    return factor == "yes" and "dora" not in name
