"""The house: chat.py is told bottom-up, as its title page says, and no room in it grows too large."""
import ast
import io
import pathlib
import re
import symtable
import tokenize

import pytest

import chat

TEXT = pathlib.Path(chat.__file__).read_text(encoding="utf-8")
TREE = ast.parse(TEXT)
BANNERS = [(number, line[6:].rstrip("= ")) for number, line in enumerate(TEXT.splitlines(), 1)
           if line.startswith("# === ")]
CLASSES = [node for node in TREE.body if isinstance(node, ast.ClassDef)]


def section_of(line):
    """The place in the book of the section that this line is in."""
    return sum(number <= line for number, name in BANNERS)


def names_of(node):
    """The names that a statement of the module makes."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [getattr(node, "name", None)] + [name.id for target in targets for name in ast.walk(target)
                                            if isinstance(name, ast.Name)]


def globals_used(table):
    """The (line, name) of each global name that the functions and classes in this scope use."""
    for scope in table.get_children():
        yield from ((scope.get_lineno(), symbol.get_name()) for symbol in scope.get_symbols() if symbol.is_global())
        yield from globals_used(scope)


def test_a_section_names_only_what_stands_above_it():
    home = {name: node.lineno for node in TREE.body for name in names_of(node) if name}
    used = list(globals_used(symtable.symtable(TEXT, "chat.py", "exec")))
    used += [(name.lineno, name.id) for node in TREE.body if isinstance(node, (ast.Assign, ast.Expr))
             for name in ast.walk(node) if isinstance(name, ast.Name)]
    downward = [f"line {line} names {name}, which stands below" for line, name in used
                if name in home and section_of(home[name]) > section_of(line)]
    assert len(home) > 250 and len(used) > 1000 and not downward


@pytest.mark.parametrize("node", CLASSES, ids=lambda node: node.name)
def test_no_class_is_too_large_to_keep_in_mind(node):
    fields = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute) and
              isinstance(part.ctx, ast.Store) and isinstance(part.value, ast.Name) and part.value.id == "self"}
    assert node.end_lineno - node.lineno < 220 and len(fields) <= 16, sorted(fields)


def test_a_fifth_of_the_lines_tell_why():
    told = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(TEXT).readline)
            if token.type == tokenize.COMMENT}
    for node in ast.walk(TREE):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            told.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    full = [number for number, line in enumerate(TEXT.splitlines(), 1) if line.strip()]
    assert sum(number in told for number in full) >= 0.2 * len(full)


def test_every_public_name_says_what_it_is_in_one_sentence():
    public = [node for node in ast.walk(TREE) if isinstance(node, (ast.ClassDef, ast.FunctionDef))
              and not node.name.startswith("_")]
    inner = {id(node) for outer in ast.walk(TREE) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)
             if node is not outer}
    wrong = [node.name for node in public if id(node) not in inner
             and not re.fullmatch(r"[A-Z`\"(].*[.)`]", ast.get_docstring(node) or "")]
    assert not wrong
