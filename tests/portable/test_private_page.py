"""The page of asyncio's private names: whether this Python has them, and whether all of them are there."""

import ast
import inspect
from pathlib import Path

import pytest

from iocp_loop._asyncio import _private

PACKAGE = Path(__file__).parents[2] / "iocp_loop"
FIELDS = [(cls, name) for cls, names in _private.FIELDS.items() for name in names]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_this_python_has_the_field(cls, name):
    """A slot, a method, or what `__init__` or another method sets."""
    assert hasattr(cls, name) or f"self.{name}" in inspect.getsource(cls)


def test_no_field_of_a_handle_is_touched_elsewhere_that_is_not_on_the_page():
    """What `handle._x` says in any other room, where the handle is asyncio's."""
    listed = {name for cls, name in FIELDS if cls.__name__ in ("Handle", "TimerHandle")}
    touched = {}
    for path in {*PACKAGE.rglob("*.py")} - {Path(_private.__file__)}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[1] != "_"
            if is_private and ast.unparse(node.value) in ("handle", "begun", "self._lent[0]", "timer[2]"):
                touched.setdefault(node.attr, path.name)
    assert set(touched) >= {"_callback", "_args", "_context", "_cancelled", "_when"}, "it finds nothing"
    assert {name: where for name, where in touched.items() if name not in listed} == {}
