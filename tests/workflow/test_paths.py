"""Every path, walked on the real server with scripted activities."""

from __future__ import annotations

import pytest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from tests.workflow.paths import FORMER_PATHS, PATHS, walk
from workflows.verify_and_settle import VerifyAndSettle


@pytest.mark.slow(but=12)
@pytest.mark.parametrize("name", PATHS | FORMER_PATHS)
async def test_a_path_ends_as_its_story_says_and_replays_as_it_went(client: Client, name: str) -> None:
    stage = await walk(client, name)
    replayer = Replayer(workflows=[VerifyAndSettle], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(await stage.handle.fetch_history())
