"""Code, tests and documents use the field's terms: words of a private language are refused in their prose."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]

BANNED: Final[dict[str, str]] = {
    r"he|him|his|himself|she|hers?": "they, their, or the role's name",
    r"whoever|whomever|nobody|nobody's|somebody|somebody's|anybody|anybody's|everybody|everybody's": "the role's name",
    r"doors?": "SECURITY DEFINER function",
    r"desks?": "matcher",
    r"opinions?": "vote",
    r"standings?": "singleton, endpoint health, or ledger summary",
    r"looks?(?! up| like)|looked(?! up)|looking(?! up)": "poll, check, or search",
    r"gone": "reorged out, deleted, ended, or unavailable",
    r"tells?|told|telling": "report, publish, or show",
    r"mend|mends|mended|mending": "fix",
    r"anew": "again",
    r"for ever|forever": "indefinitely",
    r"meanwhile": "concurrently, or in the meantime",
    r"wants|wanted(?= )": "expected, or requires",
    r"(?:hand|hands|handed|handing) in": "submit",
    r"(?:take|takes|taken|took|taking) (?:it |them )?back": "reverse",
    r"(?:take|takes|taking) turns|in turns?|(?:its|their|his) turn": "concurrency limit, or serialized",
    r"stretch(?:es)?": "gap, or segment",
    r"ripe": "past its grace period",
    r"wrong use": "usage error",
    r"in words|in the words of|last word|own words?": "as text, or message",
}
"""What not to write, and what to write in its place."""

ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "domain/accounts/sign_in.py": ("wants you to sign in with your Ethereum account",),
    "chain/contract_calls.py": ('"settle: nobody"',),
    "docs/runbook.md": ("`senderKind` nobody",),
    "tests/api/test_auth.py": ("wants you to sign in with your Ethereum account",),
    "tests/chain/test_signatures.py": ("wants you to sign in with your Ethereum account",),
    "tests/unit/test_sign_in.py": ("wants you to sign in with your Ethereum account",),
}
"""Fixed phrases: a standard's text, the input of a hash, a value of a column."""

THIS: Final = "tests/test_language.py"
"""Lists the words, and has sentences that hold them."""

SENTENCES_OF_THEIR_OWN: Final = {
    "tests/api/test_auth.py": "the text of EIP-4361, filled in by hand",
    "tests/database/test_oracle.py": "the oracle's own violations, which nothing but tests reads",
    "tests/unit/test_sign_in.py": "the text of EIP-4361, filled in by hand",
}
"""Tests that hold whole sentences, and whose these are."""

WORDS_MAX: Final = 4
"""Of a message, in what a test asserts. A whole sentence is promised: then it is a constant of the product."""

RELEASED: Final = "db/migrations/sql/000[1-3]_*.sql"
"""Migrations of released revisions: their text is not changed any more (tests/database/test_functions.py)."""

DOCUMENTS: Final = ("*.md", "api/templates/*.html", "monitoring/*.yaml", "starter/*.yaml", "docker-compose.yml")
_SQL: Final = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|LOCK TABLE|WITH|CREATE|ALTER)\b")
_SQL_PROSE: Final = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_QUOTES: Final = re.compile(r"""^\w*(\"{3}|'{3}|"|')(.*)\1$""", re.DOTALL)
_DOCSTRING: Final = re.compile(r'"{3}[A-Z`][a-z`]')
_CODE: Final = re.compile(r"`[^`\n]*`|\{[^{}\n]*\}|<[^<>\n]*>|https?://\S+|\w+(?:\.\w+)+")
_WORD: Final = re.compile(r"""[("'`;:,]*[A-Za-z][A-Za-z'’-]*[)"'`.,:;?!]*""")
_TOKEN: Final = re.compile(
    r"""\#[^\n]*|(?:\b[bfru]{1,2})?"""
    r"""(?:"{3}(?:[^\\]|\\.)*?"{3}|'{3}(?:[^\\]|\\.)*?'{3}|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')""",
    re.DOTALL | re.IGNORECASE,
)
"""Comments and strings of Python, with a string's prefix. The standard library's tokenizer takes five times as long."""

_TEST: Final = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)


def _alone(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w/-])(?:{words})(?![\w/-])", re.IGNORECASE)


_PATTERN: Final = {word: _alone(word) for word in BANNED}
_ANY: Final = _alone("|".join(BANNED))


def _files(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.splitlines() if path != THIS]


def names_of_tests(source: str) -> Iterator[tuple[int, str]]:
    """Names of test functions as words, each with its line."""
    for line, found in _with_lines(_TEST, source):
        yield line, found[1].replace("_", " ")


def prose_of_python(source: str) -> Iterator[tuple[int, str]]:
    """Comments, docstrings, strings that hold a blank, and of SQL its own prose; each with its first line."""
    for line, found in _with_lines(_TOKEN, source):
        text = found[0]
        is_string = not text.startswith("#")
        if is_string and _SQL.search(text) and not _DOCSTRING.match(text):
            statement = _QUOTES.sub(r"\2", text)
            yield from ((line + offset - 1, prose) for offset, prose in prose_of_sql(statement))
        elif not is_string or " " in text:
            yield line, text


def _with_lines(pattern: re.Pattern[str], source: str) -> Iterator[tuple[int, re.Match[str]]]:
    """All matches, each with the line on which it begins."""
    line, at = 1, 0
    for found in pattern.finditer(source):
        line += source.count("\n", at, found.start())
        at = found.start()
        yield line, found


def prose_of_sql(source: str) -> Iterator[tuple[int, str]]:
    """Comments, and literals that hold a blank, each with its first line."""
    for found in _SQL_PROSE.finditer(source):
        if " " in found[0]:
            yield source.count("\n", 0, found.start()) + 1, found[0]


def sentences_asserted(source: str) -> Iterator[tuple[int, str]]:
    """Strings of more than `WORDS_MAX` words in an assertion or in `match=`, without statements of SQL."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            yield from _sentences_in(node.test)
        elif isinstance(node, ast.keyword) and node.arg == "match":
            yield from _sentences_in(node.value)


def _sentences_in(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        text = "".join(map(str, parts))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _sentences_in(child)
        return
    # Of a pattern, what stands for anything separates what is written.
    pieces = text.replace("\\", "").replace(".*", " ").split()
    if sum(1 for piece in pieces if _WORD.fullmatch(piece)) > WORDS_MAX and not _SQL.search(text):
        assert isinstance(node, ast.expr)
        yield node.lineno, text


def banned_in(text: str, allowed: tuple[str, ...] = ()) -> list[tuple[int, str, str]]:
    """Line within the text, what was written, and what to write in its place."""
    found: list[tuple[int, str, str]] = []
    if not _ANY.search(_CODE.sub(" ", text)):
        return found
    for number, line in enumerate(text.splitlines()):
        for phrase in allowed:
            line = line.replace(phrase, "")  # noqa: PLW2901 - the same line, without what is allowed in it
        line = _CODE.sub(" ", line)  # noqa: PLW2901 - code is not prose
        for word, pattern in _PATTERN.items():
            found += [(number, match[0], BANNED[word]) for match in pattern.finditer(line)]
    return found


def _report(path: str, pieces: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"{path}:{first + offset}: {written!r}; write: {better}"
        for first, text in pieces
        for offset, written, better in banned_in(text, ALLOWED.get(path, ()))
    ]


def test_code_and_tests_use_the_fields_terms() -> None:
    found = [
        line for path in _files("*.py") for line in _report(path, prose_of_python((ROOT / path).read_text("utf-8")))
    ]
    assert not found, "\n".join(found)


def test_names_of_tests_use_the_fields_terms() -> None:
    paths = _files("tests/*.py")
    found = [line for path in paths for line in _report(path, names_of_tests((ROOT / path).read_text("utf-8")))]
    assert paths
    assert not found, "\n".join(found)


def test_database_functions_and_migrations_use_the_fields_terms() -> None:
    released = set(_files(RELEASED))
    found = [
        line
        for path in _files("*.sql")
        if path not in released
        for line in _report(path, prose_of_sql((ROOT / path).read_text("utf-8")))
    ]
    assert released
    assert not found, "\n".join(found)


def test_documents_and_pages_use_the_fields_terms() -> None:
    found = [
        line for path in _files(*DOCUMENTS) for line in _report(path, iter([(1, (ROOT / path).read_text("utf-8"))]))
    ]
    assert not found, "\n".join(found)


def test_tests_freeze_no_whole_sentence_of_the_product() -> None:
    found = {
        path: [f"{line}: {text!r}" for line, text in sentences_asserted((ROOT / path).read_text("utf-8"))]
        for path in _files("tests/*.py")
    }
    frozen = {path: lines for path, lines in found.items() if lines}
    assert {path: lines for path, lines in frozen.items() if path not in SENTENCES_OF_THEIR_OWN} == {}, (
        "assert a code, a field, a number or a name in it; or make the sentence a constant of the product"
    )
    assert set(frozen) == set(SENTENCES_OF_THEIR_OWN), "off the list: it holds none any more"


@pytest.mark.parametrize(
    ("sentence", "written"),
    [
        ("Nobody is signed in", "Nobody"),
        ("the payer says what he wants", "he"),
        ("one look at the chain", "look"),
        ("retried for ever", "for ever"),
        ("MIN_CONFIRMATIONS: got '0', wants a number", "wants"),
        ("what the chain takes back is reversed", "takes back"),
        ("see the code `nobody` and {words}", None),
        ("rows are looked up by an index", None),
        ("Other payers' transfers are then published", None),
    ],
)
def test_the_check_finds_a_word_and_not_its_likes(sentence: str, written: str | None) -> None:
    assert [found for _, found, _ in banned_in(sentence)][:1] == ([] if written is None else [written])


def test_the_name_of_a_test_is_prose_and_its_helpers_name_is_not() -> None:
    source = "def _look() -> None: ...\n\n\nasync def test_nobody_is_credited() -> None: ...\n"
    assert list(names_of_tests(source)) == [(4, "test nobody is credited")]


def test_comments_docstrings_and_messages_are_prose_and_sql_is_not() -> None:
    source = 'X = """A docstring."""  # a comment\nraise E(f"a message {X}")\nQ = "SELECT gone FROM told"\nN = "one"\n'
    assert [line for line, _ in prose_of_python(source)] == [1, 1, 2]


def test_comments_and_messages_of_sql_are_prose_and_names_and_values_are_not() -> None:
    source = "SELECT gone FROM told -- a comment\n WHERE kind = 'nobody' /* one\n more */ AND RAISE 'it''s a message'"
    expected = [(1, "-- a comment"), (2, "/* one\n more */"), (3, "'it''s a message'")]
    assert list(prose_of_sql(source)) == expected
    assert list(prose_of_python(f'X = 1\nQ = """{source}"""\n')) == [(line + 1, text) for line, text in expected]


@pytest.mark.parametrize(
    ("statement", "is_frozen"),
    [
        ('assert said == "the role has too many rights"', True),
        ('assert f"the role {role} has too many rights" in said', True),
        ('with pytest.raises(E, match=r"the role .* has too many rights"): ...', True),
        ('assert said == {"the role has too many rights": 1}, "why"', True),
        ('assert said == "too many rights"', False),
        ('assert said == RIGHTS, "the role has too many rights"', False),
        ('said = "the role has too many rights"', False),
        ('assert query("SELECT the, row FROM it WHERE so AND so") == []', False),
        ('assert f"{role}: 5 of {limit}, {rest} to go" in said', False),
    ],
)
def test_a_whole_sentence_in_an_assertion_is_found_and_its_parts_are_not(statement: str, is_frozen: bool) -> None:
    assert bool(list(sentences_asserted(statement))) is is_frozen
