"""The local chain's wallets: written down, and what anvil derives."""

from __future__ import annotations

import subprocess
import sys

import pytest
from eth_account import Account

from devstack.chain import MNEMONIC, WALLET_COUNT, dev_wallets


def test_the_wallets_are_those_of_the_mnemonic() -> None:
    Account.enable_unaudited_hdwallet_features()
    derived = [Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{i}") for i in range(WALLET_COUNT)]
    assert [(wallet.address, wallet.private_key) for wallet in dev_wallets()] == [
        (account.address, "0x" + bytes(account.key).hex()) for account in derived
    ]


@pytest.mark.slow
def test_a_process_that_signs_nothing_does_not_load_the_signing_library() -> None:
    script = "import sys, commands.up, devstack; devstack.dev_wallets(); print('py_ecc' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
