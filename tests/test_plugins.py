"""Plugins: what the registry refuses, the page about them, and the example project, installed and tested as a user would."""

import doctest
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from loratk import LoraConfig, build_registry, hookimpl
from loratk.cli import main
from loratk.errors import BackendError, PluginError, UnknownNameError
from loratk.lora.layer_types import LinearType
from loratk.lora.methods.lora import Lora
from loratk.nn import Linear, Sequential
from loratk.plugins import BUILTIN, HOOKS, default_registry, use_registry

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def plugin(**hooks):
    """A plugin with the given hooks, each a function without arguments."""
    return SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


def nothing():
    return []


def refused(*extra):
    with pytest.raises(PluginError) as caught:
        build_registry(extra=extra)
    return str(caught.value)


# The registry


def test_who_registers_what():
    registry = build_registry()
    assert registry.owners["layer type", Linear] == registry.owners["method", "lora"] == "lora"
    assert registry.owners["store", "hdf5"] == "io"
    names = {kind.name: registry.owners["layer type", kind.module] for kind in registry.layer_types.values()}
    assert (names["conv2d"], names["qkv"]) == ("conv", "attention")
    tables = (registry.layer_types, registry.methods, registry.inits, registry.stores, registry.formats, registry.merge_rules)
    assert len(registry.owners) == sum(map(len, tables))
    assert registry.owners["merge rule", "ties"] == "algebra"


def test_a_registry_is_built_anew_and_the_default_once():
    assert build_registry() is not build_registry()
    assert default_registry() is default_registry()


def test_a_subclass_has_the_layer_type_of_its_nearest_base():
    class Special(Linear):
        pass

    class SpecialType(LinearType):
        name, module = "special", Special

    assert build_registry().layer_type(Special(2, 2, rng=0)).name == "linear"
    registry = build_registry(extra=[("mine", plugin(register_layer_types=lambda: [SpecialType()]))])
    assert registry.layer_type(Special(2, 2, rng=0)).name == "special"
    assert registry.layer_type(Linear(2, 2, rng=0)).name == "linear"
    assert registry.layer_type(Sequential()) is None


def test_an_unknown_method_is_said():
    with pytest.raises(UnknownNameError, match=r"Unknown method 'x'\. Registered methods: 'adalora', 'dora', "):
        build_registry().method("x")


# Leaving out


@pytest.mark.parametrize("name", ["conv", "attention", *BUILTIN])
def test_a_plugin_that_is_left_out_registers_nothing(name):
    assert name in build_registry().owners.values()
    assert name not in build_registry(without=[name]).owners.values()


def test_leaving_out_what_is_not_there():
    with pytest.raises(
        UnknownNameError, match=r"no plugin 'ghost', 'spook' to leave out\. Plugins: 'algebra', 'attention', 'conv', .*'io'"
    ):
        build_registry(without=["ghost", "conv", "spook"])


# What is refused


def test_a_clash_names_both_plugins():
    mine, layers = plugin(register_methods=lambda: [Lora()]), plugin(register_layer_types=lambda: [LinearType()])
    assert "Two plugins register the method 'lora': 'lora' and 'mine'. Leave one out (without=, --without)" in refused(("mine", mine))
    assert "Two plugins register the layer type 'Linear': 'lora' and 'mine'" in refused(("mine", layers))
    store = plugin(register_stores=lambda: [SimpleNamespace(name="npz")])
    assert "Two plugins register the store 'npz': 'io' and 'other'" in refused(("other", store))
    assert build_registry(without=["lora"], extra=[("mine", mine)]).owners["method", "lora"] == "mine"


def test_two_plugins_of_one_name():
    assert "Two plugins have the name 'conv'" in refused(("conv", plugin(register_methods=nothing)))


def test_a_misspelt_hook():
    got = refused(("mine", plugin(register_layers=nothing)))
    assert "The plugin 'mine' breaks the contract: unknown hook 'register_layers'" in got
    hooks = ("formats", "inits", "layer_types", "merge_rules", "methods", "stores")
    assert "Hooks: " + ", ".join(f"'register_{hook}'" for hook in hooks) in got


def test_a_hook_with_arguments():
    got = refused(("mine", plugin(register_methods=lambda registry: [])))
    assert "The plugin 'mine' breaks the contract" in got
    assert "'registry'" in got


def test_a_plugin_without_hooks():
    got = refused(("mine", SimpleNamespace(register_methods=list)))
    assert "The plugin 'mine' implements no hook; mark its functions with @loratk.hookimpl" in got


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (None, "must return a list, found NoneType"),
        (Lora(), "must return a list, found Lora"),
        ([Lora], "must return instances with the attribute 'name'.*call it: Lora()"),
        ([3], "must return instances with the attribute 'name', found 3"),
    ],
    ids=str,
)
def test_a_hook_that_returns_something_else(items, said):
    got = refused(("mine", plugin(register_methods=lambda: items)))
    assert re.search(r"register_methods\(\) of the plugin 'mine' " + said.replace("()", r"\(\)"), got)


def install_broken(folder, monkeypatch, source):
    (folder / "broken_plugin.py").write_text(source, encoding="utf-8")
    info = folder / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[loratk]\nbroken = broken_plugin\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [("import no_such_module_at_all", "ModuleNotFoundError: No module named"), ("1 / 0", "ZeroDivisionError"), ("(", "SyntaxError")],
)
def test_a_plugin_that_cannot_be_imported(source, said, tmp_path, monkeypatch):
    install_broken(tmp_path, monkeypatch, source)
    assert "broken" in {point.name for point in importlib.metadata.entry_points(group="loratk")}
    with pytest.raises(PluginError, match=r"The plugin 'broken' \(broken_plugin\) could not be imported: " + said):
        build_registry()
    assert build_registry(without=["broken"]).methods


def test_a_broken_plugin_that_is_left_out_stands_in_nothings_way(tmp_path, monkeypatch):
    install_broken(tmp_path, monkeypatch, "1 / 0")
    monkeypatch.setattr("loratk.plugins._installed_registry", build_registry)  # as in a new process
    with pytest.raises(PluginError):
        LoraConfig()
    with use_registry(build_registry(without=["broken"])):
        assert LoraConfig().method == "lora"

    def cli(*arguments):
        return CliRunner().invoke(main, arguments)

    assert "broken: The plugin 'broken'" in cli("info").stdout
    assert "broken" not in cli("--without", "broken", "info").stdout

    def absent(name):
        raise BackendError("no such device")

    monkeypatch.setattr("loratk.nn.module.get_backend", absent)
    got = cli("--without", "broken", "demo", "--device", "reference", "--out", str(tmp_path / "out"))
    assert got.stderr.startswith("Error: no such device")  # so the config was made
    with pytest.raises(PluginError):
        default_registry()


# The page


def test_every_hook_stands_in_the_table_of_the_page():
    for hook in HOOKS:
        assert f"| `{hook}` |" in PAGE


def test_the_examples_of_the_page_run():
    got = doctest.testfile(str(ROOT / "docs" / "plugins.md"), module_relative=False)
    assert got.attempted > 5
    assert got.failed == 0


# The example project


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The example project, installed from a copy, and a way to run Python with it."""
    home = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", home / "project")
    target = home / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*install, "--target", str(target), str(home / "project")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])

    def python(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=home / "project", env={**os.environ, "PYTHONPATH": path})

    return python


def test_the_example_passes_its_own_tests(site):
    got = site("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert got.returncode == 0, got.stdout + got.stderr
    assert re.search(r"^11 passed", got.stdout, re.MULTILINE)


def test_the_example_is_found_and_can_be_left_out(site):
    def registered(without):
        code = f"from loratk import build_registry as b; print(*(k for (_, k), name in b({without}).owners.items() if name == 'example'))"
        return site("-c", code).stdout.strip()

    assert registered([]) == "<class 'loratk_example.conv1d.Conv1d'> hira signs jsonl listing median"
    assert registered(["example"]) == ""
