"""Limits on the size of files, classes and functions of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import cachemw

PACKAGE = Path(cachemw.__file__).parent
FILE, CLASS, FUNCTION = 400, 250, 60
DATA_TABLES = {"core/tuning.py"}  # one commented constant after the other


def lines(node: ast.AST) -> int:
    """Return the number of lines of a class or function."""
    assert isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_package_has_no_file_class_or_function_over_its_limit() -> None:
    """Every file has at most 400 lines, every class 250, every function 60; tables of data may be longer."""
    large = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
        if source.count("\n") > FILE and name not in DATA_TABLES:
            large.append(name)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and lines(node) > CLASS:
                large.append(f"{name}: class {node.name}")
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and lines(node) > FUNCTION:
                large.append(f"{name}: {node.name}")
    assert large == []
