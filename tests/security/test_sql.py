"""SQL is built by SQLAlchemy with bound parameters; what is written out as text is a constant."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAKE_SQL = {"text", "literal_column", "DDL", "exec_driver_sql", "execute", "executescript", "executemany"}
MIGRATIONS = list((ROOT / "platform/ablation/store/migrations").rglob("*.py"))


def _texts() -> Iterator[tuple[ast.expr, Path, int]]:
    """The first argument of every call that takes SQL as text."""
    for folder in ("platform", "dashboards", "experiments"):
        for path in set((ROOT / folder).rglob("*.py")) - set(MIGRATIONS):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args:
                    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
                    if name in TAKE_SQL:
                        yield node.args[0], path, node.lineno


def _pasted(text: ast.expr) -> bool:
    """Whether a text is put together from anything but constants of ours (names in capitals)."""
    match text:
        case ast.JoinedStr():
            parts = [part.value for part in text.values if isinstance(part, ast.FormattedValue)]
            return not all(isinstance(part, ast.Name) and part.id.isupper() for part in parts)
        case ast.BinOp(op=ast.Mod() | ast.Add()):
            return True
        case ast.Call(func=ast.Attribute(attr="format" | "join" | "replace")):
            return True
        case ast.IfExp():
            return _pasted(text.body) or _pasted(text.orelse)
        case _:
            return False


def test_no_sql_is_pasted_together() -> None:
    found = list(_texts())
    assert len(found) > 20, "the calls that take SQL are not found any more"
    assert [f"{path.name}:{line}" for text, path, line in found if _pasted(text)] == []


def test_migrations_paste_nothing_in_for_they_are_given_nothing() -> None:
    assert MIGRATIONS
    for path in MIGRATIONS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and path.parent.name == "versions":
                assert [argument.arg for argument in node.args.args] == ["op"], f"{path.name}: {node.name}"
