"""Forms with files (`multipart/form-data`): read for their fields, and passed on as they came, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from email.message import Message
from email.parser import HeaderParser
from typing import Any, Final

from domain.billing.requests import InvalidRequest

PARTS_MAX: Final = 100
HEAD_BYTES_MAX: Final = 4_096
FIELD_BYTES_MAX: Final = 256 * 1024


class FormBody:
    """A form whose fields can be read. Files are counted, not read."""

    def __init__(self, body: bytes, fields: Mapping[str, str], file_bytes: int) -> None:
        self._body = body
        self._fields = fields
        self.file_bytes = file_bytes
        """Length of all files together."""

    @classmethod
    def parse(cls, body: bytes, content_type: str) -> FormBody:
        """Raises `InvalidRequest` for what is no form, and for a field that is given twice, as in `RequestBody`."""
        boundary = _boundary(content_type)
        fields: dict[str, str] = {}
        file_bytes = 0
        for head, start, end in _parts(body, boundary):
            name = head.get_param("name", header="content-disposition")
            if not isinstance(name, str):
                raise InvalidRequest("The form is invalid: a part has no name")
            if head.get_param("filename", header="content-disposition") is not None:
                file_bytes += end - start
                continue
            if name in fields:
                raise InvalidRequest(f"The form is invalid: {name[:40]!r} is given twice", name[:40])
            if end - start > FIELD_BYTES_MAX:
                raise InvalidRequest(f"{name[:40]} is too long: expected at most {FIELD_BYTES_MAX:,} bytes", name[:40])
            fields[name] = body[start:end].decode(errors="replace")
        return cls(body, fields, file_bytes)

    def get(self, name: str) -> Any:
        """The field's text; None where it is missing."""
        return self._fields.get(name)

    def names(self) -> frozenset[str]:
        """The names of all fields that are no files."""
        return frozenset(self._fields)

    def replaced(self, values: Mapping[str, Any]) -> bytes:
        """The form as it came: nothing has to be set in it."""
        assert not values, "no field of a form is set"
        return self._body


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary or len(boundary) > 70:
        raise InvalidRequest("The request body is invalid: expected multipart/form-data with a boundary")
    return b"--" + boundary.encode(errors="replace")


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[Message, int, int]]:
    """Each part's head, and where its content begins and ends; nothing of a file is copied."""
    if not body.startswith(delimiter):
        raise InvalidRequest("The form is invalid: it does not begin with its boundary")
    at = len(delimiter)
    for _ in range(PARTS_MAX):
        if body.startswith(b"--", at):
            return
        head_end = body.find(b"\r\n\r\n", at, at + HEAD_BYTES_MAX)
        end = body.find(b"\r\n" + delimiter, head_end) if head_end >= 0 else -1
        if end < 0:
            raise InvalidRequest("The form is invalid: a part is not complete")
        head = HeaderParser().parsestr(body[at + len(b"\r\n") : head_end].decode(errors="replace"))
        yield head, head_end + len(b"\r\n\r\n"), end
        at = end + len(b"\r\n") + len(delimiter)
    raise InvalidRequest(f"The form is invalid: it has more than {PARTS_MAX} parts")
