"""PostgreSQL: schema, roles, and every query by name. Query functions never commit; callers own transactions."""
