"""The database's functions as they are now: `<subject>.sql` holds each one's present text, and nothing else.

Each text is exactly what the server says of the function (`pg_get_functiondef`, psql's `\\sf`), so that one that
differs is found by comparing two strings, whether its file has changed or the database. Which triggers call a function,
and which roles may, is written elsewhere (docs/decisions/functions-and-rights.md).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

_TEXT: Final = re.compile(r"^(CREATE OR REPLACE FUNCTION public\.(\w+)\(.*?^(?:END )?\$function\$);$", re.M | re.S)

_INSTALLED: Final = """
    SELECT f.proname::text, rtrim(pg_get_functiondef(f.oid), E'\n') FROM pg_proc f
     WHERE f.pronamespace = 'public'::regnamespace AND f.prokind = 'f'
       AND NOT EXISTS (
           SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = f.oid AND d.deptype = 'e')
"""


@cache
def load() -> Mapping[str, str]:
    """The text of each function, by its name."""
    return parse("".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.sql"))))


def parse(content: str) -> dict[str, str]:
    """The functions of a file's content, by name. Raises `ValueError` where it holds anything else than comments."""
    texts: dict[str, str] = {}
    for text, name in _TEXT.findall(content):
        if name in texts:
            raise ValueError(f"function {name} has two texts")
        texts[name] = text
    rest = [line for line in _TEXT.sub("", content).splitlines() if line and not line.startswith("--")]
    if rest:
        raise ValueError(f"neither a comment nor a function as the server prints it: {rest[0]}")
    return texts


def installed(driver: psycopg.Connection[Any]) -> dict[str, str]:
    """The functions of the schema as the server prints them, by name; those of extensions are none of it."""
    return dict(driver.execute(_INSTALLED).fetchall())


def create(driver: psycopg.Connection[Any], names: Collection[str]) -> None:
    """Create those that are missing: for a revision whose triggers, policies or rights name functions that are new.

    One that is there stays as it is: processes of the version before call it, until `bring_up_to_date`.
    """
    there, texts = installed(driver), load()
    for name in names:
        if name not in there:
            _apply(driver, name, texts[name], is_new=True)


def bring_up_to_date(driver: psycopg.Connection[Any]) -> list[str]:
    """Create or replace what differs from its text; the names. In the caller's transaction.

    What has no text stays: the version before may call it until the contracting revision drops it.
    """
    there = installed(driver)
    changed = {name: text for name, text in load().items() if there.get(name) != text}
    for name, text in changed.items():
        _apply(driver, name, text, is_new=name not in there)
    return list(changed)


def _apply(driver: psycopg.Connection[Any], name: str, text: str, *, is_new: bool) -> None:
    # In any order, and before the tables that a body names.
    driver.execute("SET LOCAL check_function_bodies = off")
    driver.execute(text.encode())
    if is_new:
        # PostgreSQL lets every role call a new function; the permitted ones are granted it by name.
        driver.execute(sql.SQL("REVOKE ALL ON FUNCTION public.{} FROM PUBLIC").format(sql.Identifier(name)))
