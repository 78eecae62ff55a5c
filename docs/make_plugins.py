"""Write the declarations of hooks and classes into docs/plugins.md: python docs/make_plugins.py"""

import ast
import inspect
import re
import textwrap
from pathlib import Path

from loratk import LayerType, Method, hookspecs
from loratk.algebra.rules import Columns, DenseRule, FactorRule, MergeRule
from loratk.exchange import AdapterFormat
from loratk.io import StoreBase
from loratk.lora import Call, Init, Start, Started
from loratk.lora.inits.base import Gatherer, Seen

PAGE = Path(__file__).parent / "plugins.md"
CLASSES = (
    LayerType,
    Method,
    Call,
    Init,
    Start,
    Started,
    Gatherer,
    Seen,
    MergeRule,
    FactorRule,
    DenseRule,
    Columns,
    StoreBase,
    AdapterFormat,
)
WIDTH = 140


def declared(node: ast.ClassDef | ast.Module) -> str:
    """The attributes and public functions of a class or module, without bodies, decorators of classes and hooks kept."""
    fields = [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]
    functions = [part for part in node.body if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]
    heads = [f"def {part.name}({ast.unparse(part.args)}) -> {ast.unparse(part.returns)}: ..." for part in functions]  # type: ignore[arg-type]
    return "\n".join([*fields, *([""] if fields and heads else []), *heads]).replace("'", '"')


def class_block(kind: type) -> str:
    """The declaration of a class."""
    node = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(node, ast.ClassDef)
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    marks = "".join(f"@{ast.unparse(mark)}\n" for mark in node.decorator_list)
    return f"{marks}class {node.name}{bases}:\n{textwrap.indent(declared(node), '    ')}\n"


def hook_block() -> str:
    """All hooks."""
    functions = [part for part in ast.parse(inspect.getsource(hookspecs)).body if isinstance(part, ast.FunctionDef)]
    heads = [f"@hookspec\ndef {part.name}() -> {ast.unparse(part.returns)}: ...\n" for part in functions]  # type: ignore[arg-type]
    return "\n\n".join(heads).replace("'", '"')


def page(text: str) -> str:
    """The page with every declaration as it is now. Each class, and the hooks, must have a block."""
    blocks = {r"@hookspec\n": hook_block()}
    for kind in CLASSES:
        blocks[rf"(?:@dataclass[^\n]*\n)?class {kind.__name__}\b[^\n]*:\n"] = class_block(kind)
    for start, block in blocks.items():
        found = re.compile(rf"```python\n(?={start})(?!>>>).*?```", re.DOTALL)
        assert len(found.findall(text)) == 1, f"docs/plugins.md must have one block for {start!r}"
        text = found.sub(lambda _, block=block: f"```python\n{block}```", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
