"""python -m benchmarks.merging [--gigabytes N] [--turns N] [--rank N]: a merge into a sharded checkpoint, beside copying it.

A checkpoint in bfloat16 with the shapes of a transformer is made in a temporary folder, with LoRA for all of its linear layers. In turns it
is copied and merged into, on one disk, with all of the base in the page cache; each merge is a process of its own, whose peak memory is
its VmHWM. A merge forces its result to the disk before it names it, so the copy is timed with that too, and without. What was written
before is removed first, and a rest follows: in a virtual machine, memory that was freed is given back to the host after some seconds, and
new memory takes long to get, so both must begin after the same while.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import loratk
from loratk.exchange import AdapterState, save_adapter
from loratk.io import LazyArrays, write_safetensors
from loratk.io.bfloat16 import to_bits, to_float32

from .machine import header

WIDE, INNER, VOCABULARY = 4096, 11008, 32000
PER_SHARD = 3
ADAPTER = "adapter.safetensors"


def shapes(gigabytes: float, scale: int) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes of each shard, output first; so many layers that all of it has about so many bytes. `scale` divides all sizes."""
    d, ff, v = WIDE // scale, INNER // scale, VOCABULARY // scale
    layer = {f"self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
    layer |= {
        "mlp.gate_proj.weight": (ff, d),
        "mlp.up_proj.weight": (ff, d),
        "mlp.down_proj.weight": (d, ff),
        "input_layernorm.weight": (d,),
    }
    each = sum(2 * int(np.prod(shape)) for shape in layer.values())
    count = max(round((gigabytes * 1e9 - 4 * v * d) / each), 1)
    shards: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (v, d)}]
    for number in range(count):
        if number and number % PER_SHARD == 0:
            shards.append({})
        shards[-1].update({f"model.layers.{number}.{name}": shape for name, shape in layer.items()})
    shards[-1].update({"model.norm.weight": (d,), "lm_head.weight": (v, d)})
    return shards


def make(folder: Path, shards: list[dict[str, tuple[int, ...]]], rank: int) -> int:
    """Write the checkpoint and the adapter, and return the checkpoint's bytes. The numbers are those of one draw, over and over."""
    rng, where = np.random.default_rng(0), {}
    draw = to_float32(to_bits((0.02 * rng.standard_normal(1 << 22)).astype(np.float32)))
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        infos = {key: (shape, np.dtype(np.float32)) for key, shape in shard.items()}
        arrays = LazyArrays(infos, lambda key, infos=infos: np.resize(draw, infos[key][0]))  # type: ignore[misc]
        write_safetensors(folder / name, arrays, {"format": "pt"}, list(shard))
        where |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    tensors, records = {}, {}
    for key, shape in ((key, shape) for shard in shards for key, shape in shard.items() if key.endswith("_proj.weight")):
        module, (k, d) = key.removesuffix(".weight"), shape
        tensors[f"{module}.lora_A"] = (0.01 * rng.standard_normal((d, rank))).astype(np.float32)
        tensors[f"{module}.lora_B"] = (0.01 * rng.standard_normal((rank, k))).astype(np.float32)
        records[module] = {"method": "lora", "rank": rank, "alpha": float(rank), "scaling": 1.0, "shape": [d, k]}
    save_adapter(folder.parent / ADAPTER, AdapterState("default", {}, tensors, records), format="safetensors")
    return sum(path.stat().st_size for path in folder.iterdir())


def removed(folder: Path, rest: float) -> None:
    """Remove a folder, from the disk too, and rest."""
    shutil.rmtree(folder)
    os.sync()
    time.sleep(rest)


def copied(source: Path, target: Path) -> tuple[float, float]:
    """Seconds to copy a folder, and to copy it and have it on the disk."""
    begun = time.perf_counter()
    shutil.copytree(source, target)
    plain = time.perf_counter() - begun
    for path in target.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return plain, time.perf_counter() - begun


def merged(source: Path, target: Path) -> tuple[float, int]:
    """Seconds of a merge, and the bytes its process took at its peak."""
    command = [sys.executable, "-m", "benchmarks.merging", "--child", str(source), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


def child(source: str, target: str) -> None:
    """One merge, in a process that does nothing else; loading the compiled kernels counts."""
    begun = time.perf_counter()
    loratk.merge(source, Path(source).parent / ADAPTER, target)
    seconds, status = time.perf_counter() - begun, Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    print(seconds, next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description="A merge into a checkpoint beside copying it.")
    parser.add_argument("--gigabytes", type=float, default=4.0, metavar="N", help="size of the checkpoint (default 4)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="how many turns (default 3)")
    parser.add_argument("--rank", type=int, default=16, metavar="N", help="rank of the adapter (default 16)")
    parser.add_argument("--scale", type=int, default=1, metavar="N", help="divide the sizes of all layers (default 1)")
    parser.add_argument("--rest", type=float, default=5.0, metavar="SECONDS", help="before each measurement (default 5)")
    parser.add_argument("--where", type=Path, metavar="DIR", help="the folder to work in (default: a temporary one)")
    parser.add_argument("--child", nargs=2, metavar=("BASE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    with tempfile.TemporaryDirectory(dir=given.where) as folder:
        if shutil.disk_usage(folder).free < 3.5e9 * given.gigabytes:
            parser.error(f"{folder} has room for {shutil.disk_usage(folder).free:,} bytes; this takes {3.5 * given.gigabytes:g} GB")
        base, copy, result = (Path(folder) / name for name in ("base", "copy", "merged"))
        base.mkdir()
        size = make(base, shapes(given.gigabytes, given.scale), given.rank)
        print(header(loratk.get_num_threads()))
        print(f"{size / 1e9:.2f} GB in {len(list(base.iterdir())) - 1} shards, rank {given.rank}, all linear layers; page cache warm")
        merged(base, result)  # compiles
        times: list[tuple[float, ...]] = []
        for _ in range(given.turns):
            removed(result, given.rest)
            seconds = copied(base, copy)
            removed(copy, given.rest)
            times.append((*seconds, *merged(base, result)))
            plain, forced, merge, peak = times[-1]
            print(f"copy {plain:.2f} s, forced to the disk {forced:.2f} s; merge {merge:.2f} s, peak {peak / 1e6:.0f} MB", flush=True)
        plain, forced, merge = (min(column) for column in list(zip(*times, strict=True))[:3])
        ratios = f"{merge / forced:.2f} times the copy that is on the disk, {merge / plain:.2f} times the other"
        print(f"best of {given.turns}: a merge takes {ratios}")


if __name__ == "__main__":
    main()
