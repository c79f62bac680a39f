"""Compatibility of code and schema, and the proof that a commit reaches the disk."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class SchemaCompatibility(Base):
    """The oldest revision of the code that may run with a revision of the schema (`compatible_from`)."""

    __tablename__ = "schema_compatibility"

    revision: Mapped[str] = mapped_column(primary_key=True)
    compatible_from: Mapped[str]
    applied_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WriteProbe(Base):
    """When a role's process last proved that its commits reach the disk."""

    __tablename__ = "write_probes"

    role_name: Mapped[str] = mapped_column(primary_key=True)
    written_at: Mapped[datetime]
