"""A local AI provider for development and tests: a real HTTP server that speaks the APIs of OpenAI and Anthropic.

It streams with real usage, bills what it produced, and on demand stalls, breaks off, lies about usage, fails, or
goes on when the client hangs up (`behaviour.py`). Tokens are words (`tokens.py`), prices are its own (`prices.py`).

    async with Upstream().serve() as url:                     # in this process
    upstream = EmbeddedUpstream(state_dir)                    # as a part of the stack
    python -m devstack.upstream --port 8787                   # alone

| route | |
|---|---|
| `POST /v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/messages`, `/v1/embeddings` | answers |
| `POST /v1/images/generations`, `/v1/audio/speech`, `/v1/audio/transcriptions` | no real pictures or sounds |
| `GET /v1/models`, `/v1/models/{id}`, `POST /v1/messages/count_tokens`, `HEAD /`, `GET /livez` | |
| `POST /_control` `{behaviour, requests?, path?}` | the next requests (1; null: all) behave so; `DELETE` ends it |
| `GET /_calls?after=N` | what was received, produced and billed, and whether the client hung up |
| `GET /_billed`, `POST /_reset` | the sums; forget everything |
| `GET /generation?id=`, `/activity` | OpenRouter's records |
| `GET /spend/logs` | LiteLLM's |
| `GET /v1/organization/costs`, `/v1/organizations/cost_report` | OpenAI's and Anthropic's costs by day |
"""

from devstack.upstream.behaviour import Behaviour, BehaviourError
from devstack.upstream.server import Upstream
from devstack.upstream.service import EmbeddedUpstream

__all__ = ["Behaviour", "BehaviourError", "EmbeddedUpstream", "Upstream"]
