"""What type checkers and editors read of `functional_optim`: its stub, `functional_optim/__init__.pyi`, made by `make catalogue`.

A decorator makes the signature of a constructor when it runs, where no type checker sees it. The stub writes these signatures
out, and imports all other names from where `functional_optim/__init__.py` imports them.
"""

import ast
import inspect
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import functional_optim as fo
from functional_optim.codecs import Codec
from functional_optim.transform import Transform

PACKAGE = Path(__file__).parent.parent / "functional_optim"
FILE = PACKAGE / "__init__.pyi"

TEMPLATE = '''"""Made by `make catalogue`: the names of `__init__.py`, with the signatures that decorators make."""

import collections.abc

import torch

{imports}

__version__: str

{constructors}

{contents}
'''


def stub() -> str:
    """The text of the file, but for where its lines break."""
    source = (PACKAGE / "__init__.py").read_text()
    statements = ast.parse(source).body
    (contents,) = (node for node in statements if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    made = [name for name in sorted(fo.__all__) if is_made(getattr(fo, name))]
    return TEMPLATE.format(
        imports="\n".join([*modules(), *imports(statements, made)]),
        constructors="\n".join(f"def {name}{written(inspect.signature(getattr(fo, name)))}: ..." for name in made),
        contents=ast.get_source_segment(source, contents),
    )


def is_made(constructor: Any) -> bool:
    """Whether a decorator made this constructor's signature."""
    return inspect.isfunction(constructor) and "__signature__" in vars(constructor)


def modules() -> Iterator[str]:
    """The modules of the table of contents; `as` makes them public."""
    for name in dir(fo):
        if inspect.ismodule(getattr(fo, name)):
            yield f"from functional_optim import {name} as {name}"


def imports(statements: Iterable[ast.stmt], made: Container[str]) -> Iterator[str]:
    """The imports of the package, without the names that are made."""
    for node in statements:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("functional_optim."):
            names = [alias.name for alias in node.names if alias.name not in made]
            # The annotations of what is made name it.
            names = sorted([*names, "Codec"]) if node.module == "functional_optim.codecs" else names
            if names:
                yield f"from {node.module} import {', '.join(names)}"


def written(signature: inspect.Signature) -> str:
    """As source; names are full, but for those of `Transform` and `Codec`."""
    return str(signature).replace(f"{Transform.__module__}.", "").replace(f"{Codec.__module__}.", "")


def parsed(text: str) -> str:
    """The text without what depends on its layout."""
    return ast.unparse(ast.parse(text))
