"""How many faults become one message, and what stands beside a path that is no adapter."""

import shutil
from pathlib import Path

import pytest

from loratk.errors import FormatError, faults, together
from loratk.exchange import load_adapter

DATA = Path(__file__).parent.parent / "data"


def test_a_few_faults_are_told_one_by_one():
    found = [f"module 'm{n}': its rank is odd, as 'm{n}.weight' is" for n in range(8)]
    assert together(found) == found


def test_many_that_differ_in_a_name_alone_are_told_together_and_counted():
    found = [f"adapter 'a', module 'm.{n}': its rank is odd" for n in range(9)]
    found.insert(3, "adapter 'a', module 'm.x' has no number")
    found += [f"tensor 't{n}' is missing: {n % 2}" for n in range(18)] + ["neither"]
    found += [f"module 'p{n}': the base has no array 'p{n}.weight'" for n in range(9)]
    assert together(found) == [
        "adapter 'a', each of 9 modules ('m.0', 'm.1', 'm.2', ...): its rank is odd",
        "adapter 'a', module 'm.x' has no number",
        "each of 9 tensors ('t0', 't2', 't4', ...) is missing: 0",
        "each of 9 tensors ('t1', 't3', 't5', ...) is missing: 1",
        "neither",
        "each of 9 modules ('p0', 'p1', 'p2', ...): the base has no array '<module>.weight'",
    ]


def test_a_name_that_is_a_number_is_not_taken_for_one():
    found = [f"module '{n}': it has rank {n}" for n in range(9)]
    assert together(found) == found
    assert together(["module '': odd", "neither"]) == ["module '': odd", "neither"]


def test_a_fault_with_faults_of_its_own_is_indented():
    assert faults("outer:", [faults("inner:", ["one", "two"]), "three"]) == "outer:\n  - inner:\n    - one\n    - two\n  - three"


def test_a_part_of_a_folder_leads_to_the_folder(tmp_path):
    shutil.copytree(DATA / "peft" / "plain", tmp_path / "x")
    with pytest.raises(
        FormatError, match=r"adapter_config.json' alone is no adapter, but a part of the folder '.*x' \(PEFT folder\); give the folder"
    ):
        load_adapter(tmp_path / "x" / "adapter_config.json")


def test_other_files_beside_an_adapter_are_told_for_themselves(tmp_path):
    shutil.copytree(DATA / "peft" / "plain", tmp_path / "x")
    (tmp_path / "x" / "notes.bin").write_bytes(b"abc")
    with pytest.raises(FormatError, match="begins with the bytes b'abc'"):
        load_adapter(tmp_path / "x" / "notes.bin")


def test_a_folder_without_its_config_leads_to_the_file_in_it(tmp_path):
    shutil.copytree(DATA / "peft" / "plain", tmp_path / "x")
    (tmp_path / "x" / "adapter_config.json").unlink()
    with pytest.raises(FormatError, match=r"'adapter_model.safetensors' in it is of the format 'peft': give its path"):
        load_adapter(tmp_path / "x")
    (state,) = load_adapter(tmp_path / "x" / "adapter_model.safetensors", options={"alpha": 3}).states
    assert state.modules["block.fc1"]["alpha"] == 3.0
