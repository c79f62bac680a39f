"""Scheduled jobs, one module each; `workflows.registry` lists them.

A module holds one `@workflow.defn` class whose `run` takes one pydantic model, all of whose fields have defaults. A job
whose model has a field `chain_id` works on one chain: each chain has a schedule of its own for it.
"""
