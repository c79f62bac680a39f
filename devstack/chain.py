"""A local chain: anvil, its state saved so that a crash loses no payment, and a test token on it.

The platform's own binary is started, because npm's wrapper script leaves it behind when killed.

What survives: `save_if_advanced` asks the node for its state (`anvil_dumpState`) and replaces one compressed
file in a single step; anvil's own option writes in place and would leave half a file. Blocks keep their
numbers and hashes, transactions their receipts and logs, accounts their nonces. Lost by a SIGKILL are at most
the blocks of the last moment before it (see `save_if_advanced`) and transactions that no block held yet.
After a restart the node cannot undo blocks mined before it unless `keep_history` was set: see there.
"""

import asyncio
import contextlib
import functools
import gzip
import json
import os
import platform
import secrets
import shutil
import sys
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from eth_abi.abi import decode, encode
from eth_typing import ChecksumAddress, HexStr
from eth_utils.abi import abi_to_signature, function_signature_to_4byte_selector
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from devstack.contracts import TOKEN_DECIMALS, load_artifact
from devstack.errors import INSTALL_COMMAND, IS_CHECKOUT, ChainCallError, MissingPartError, PartFailedError
from devstack.processes import (
    ChildProcess,
    PortBook,
    ProcessSpec,
    Service,
    start_process,
    wait_until,
    write_atomically,
)

if TYPE_CHECKING:
    from eth_account import Account

PREFERRED_PORT = 8545
ANVIL_VERSION = "1.7.1"
LOCAL_CHAIN_ID = 31337
# The mnemonic that local chain tools share. Its keys are public: nothing of value may ever be sent to them.
MNEMONIC = "test test test test test test test test test test test junk"
WALLET_COUNT = 10
DEPLOYER_INDEX = 0
PAYER_INDEXES = range(1, 9)
TREASURY_INDEX = 9
MINT_RAW = 1_000_000 * 10**TOKEN_DECIMALS

# Fixed and generous, so that no estimate is needed: one that would revert is then mined with status 0,
# as it is on a public chain when the state changes after the estimate.
TRANSFER_GAS = 120_000
SIGNED_TRANSFER_GAS = 200_000
DEPLOY_GAS = 3_000_000
SMART_WALLET_GAS = 500_000
MAX_FEE_WEI = 20_000_000_000
PRIORITY_FEE_WEI = 1_000_000_000
# The contract that anvil, like nearly every public chain, has from its first block. It creates what it is sent, behind
# 32 bytes of salt, at an address that does not depend on who asks or when.
CREATE2_DEPLOYER = "0x4e59b44847b379578588920cA78FbF26c0B4956C"
NONCE_ATTEMPTS_MAX = 20
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)
STOP_SAVE_SECONDS = 3

# States of past blocks that anvil keeps in memory: how deep `reorg` can go, and how far back a call can ask for
# a balance (blocks, receipts and logs are all kept). Each grows with the chain's length: with 128 of them anvil
# took 30 MB more for every 1,000 blocks, and without a limit it writes them out and slows down by the minute.
KEPT_STATES = 32
# A save costs time in proportion to the chain's length. Blocks without transactions may wait, so that saving
# never takes more than about this share of the time.
SAVE_TIME_SHARE = 0.05
PLATFORMS = {
    ("Linux", "x86_64"): "linux-amd64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "x86_64"): "darwin-amd64",
    ("Darwin", "arm64"): "darwin-arm64",
}


# -- wallets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wallet:
    """A funded account of the local chain. Its private key is public knowledge."""

    index: int
    address: ChecksumAddress
    private_key: HexStr

    def __repr__(self) -> str:
        return f"Wallet({self.index}, {self.address})"


# What anvil derives from MNEMONIC and prints at its start; written down, because deriving them takes a library that
# costs a process 0.7 s, which one that signs nothing should not wait for.
_DEV_ACCOUNTS = {
    "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266": "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "0x70997970C51812dc3A010C7d01b50e0d17dc79C8": "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC": "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "0x90F79bf6EB2c4f870365E785982E1f101E93b906": "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65": "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc": "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    "0x976EA74026E726554dB657fA54763abd0C3a0aa9": "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
    "0x14dC79964da2C08b23698B3D3cc7Ca32193d9955": "0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
    "0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f": "0xdbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97",
    "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720": "0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6",
}


@functools.cache
def dev_wallets() -> tuple[Wallet, ...]:
    """The ten accounts that anvil funds: 0 deploys, 1 to 8 pay, 9 is the treasury."""
    return tuple(
        Wallet(index, to_checksum_address(address), HexStr(private_key))
        for index, (address, private_key) in enumerate(_DEV_ACCOUNTS.items())
    )


@functools.cache
def _account() -> "type[Account]":
    """The signing library, loaded by the first signature: it brings curves of other chains, which take long."""
    limit = sys.getrecursionlimit()
    from eth_account import Account

    # A library under it raises the limit so far that deeply nested JSON ends the process.
    sys.setrecursionlimit(limit)
    return Account


def wallet_address(private_key: str) -> ChecksumAddress:
    """The address of any private key."""
    return to_checksum_address(_account().from_key(private_key).address)


def payer_wallets() -> tuple[Wallet, ...]:
    """The accounts that hold test USDC and gas."""
    return tuple(dev_wallets()[index] for index in PAYER_INDEXES)


def created_address(deployer: str, nonce: int) -> ChecksumAddress:
    """Where a contract lies that `deployer` creates in its transaction number `nonce`."""
    # RLP by hand: a list of a 20-byte string and a small integer is always a short list.
    number = b"" if nonce == 0 else nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    encoded_number = number if len(number) == 1 and number[0] < 0x80 else bytes([0x80 + len(number)]) + number
    payload = bytes([0x80 + 20]) + bytes.fromhex(deployer[2:]) + encoded_number
    return to_checksum_address(keccak(bytes([0xC0 + len(payload)]) + payload)[12:])


def create2_address(deployer: str, salt: bytes, creation_code: bytes) -> ChecksumAddress:
    """Where a contract lies that the contract `deployer` creates with CREATE2 (EIP-1014)."""
    return to_checksum_address(keccak(b"\xff" + bytes.fromhex(deployer[2:]) + salt + keccak(creation_code))[12:])


# -- contract calls ----------------------------------------------------------------------------------------


@functools.cache
def _function(contract: str, name: str, arguments: int) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """Selector, argument types and result types of a function of one of our contracts.

    Of several of that name, the number of arguments says which.
    """
    functions = [entry for entry in load_artifact(contract).abi if entry["type"] == "function"]
    entry = next(one for one in functions if one["name"] == name and len(one["inputs"]) == arguments)
    signature = abi_to_signature(cast(Any, entry))

    def types(part: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        return tuple(_abi_type(argument) for argument in part)

    return function_signature_to_4byte_selector(signature), types(entry["inputs"]), types(entry["outputs"])


def _abi_type(argument: Mapping[str, Any]) -> str:
    kind = str(argument["type"])
    if not kind.startswith("tuple"):
        return kind
    return "(" + ",".join(_abi_type(part) for part in argument["components"]) + ")" + kind[len("tuple") :]


def call_data(contract: str, function: str, *arguments: Any) -> HexStr:
    """The data of a call to one of our contracts, 0x-prefixed hex."""
    selector, inputs, _ = _function(contract, function, len(arguments))
    return HexStr("0x" + (selector + encode(inputs, arguments)).hex())


@dataclass(frozen=True)
class SignedPayment:
    """An EIP-3009 authorization: its holder can execute this transfer, once."""

    token: ChecksumAddress
    payer: ChecksumAddress
    to: ChecksumAddress
    amount_raw: int
    valid_after: int
    valid_before: int
    nonce: bytes
    v: int
    r: bytes
    s: bytes

    def as_arguments(self) -> tuple[Any, ...]:
        """In the order of the contract's arguments, without the token."""
        return (
            self.payer, self.to, self.amount_raw, self.valid_after, self.valid_before, self.nonce,
            self.v, self.r, self.s,
        )  # fmt: skip

    @property
    def signature(self) -> bytes:
        """The 65 bytes that the overloads for contracts, too, are called with."""
        return self.r + self.s + bytes([self.v])


def _signed(
    private_key: str, *, token: str, chain_id: int, primary_type: str, fields: Sequence[tuple[str, str]], message: Any
) -> tuple[int, bytes, bytes]:
    signature = _account().sign_typed_data(
        private_key,
        domain_data={"name": "USD Coin", "version": "2", "chainId": chain_id, "verifyingContract": token},
        message_types={primary_type: [{"name": name, "type": kind} for name, kind in fields]},
        message_data=message,
    )
    return signature.v, signature.r.to_bytes(32, "big"), signature.s.to_bytes(32, "big")


# -- the binary --------------------------------------------------------------------------------------------


def locate_anvil() -> Path:
    """The anvil binary for this platform.

    In SETTLE_NODE_MODULES, where it is set; else in `node_modules` beside the product or in the current folder, as npm
    leaves it there, or on the PATH. npm's own wrapper, which is called anvil as well, is on no PATH by itself.

    Raises MissingPartError when it is not installed, or not made for this platform.
    """
    key = (platform.system(), {"amd64": "x86_64"}.get(platform.machine(), platform.machine()))
    if key not in PLATFORMS:
        raise MissingPartError(
            f"there is no anvil for {key[0]} on {key[1]}: leave the chain out or use another machine"
        )
    package = f"@foundry-rs/anvil-{PLATFORMS[key]}"
    named = os.environ.get("SETTLE_NODE_MODULES")
    beside = Path(__file__).resolve().parents[1] / "node_modules"
    for modules in [Path(named)] if named else [beside, Path.cwd() / "node_modules"]:
        binary = (modules / package / "bin" / "anvil").absolute()
        if binary.exists():
            return binary
    if named:
        raise MissingPartError(f"anvil is not installed in {named} (SETTLE_NODE_MODULES); run: npm install {package}")
    on_path = shutil.which("anvil")
    if on_path is None:
        command = INSTALL_COMMAND if IS_CHECKOUT else f"npm install {package}@{ANVIL_VERSION}"
        raise MissingPartError(f"anvil, the local chain, is not installed; run: {command}")
    return Path(on_path).absolute()


# -- the chain ---------------------------------------------------------------------------------------------


SLOTS_IN_AN_EPOCH = 16
"""Of a chain that people watch, a block a second: `safe` trails by 16 blocks, `finalized` by 32, half a minute."""


class LocalChain(Service):
    """An anvil node with its state in `<state dir>/chain`, and TestUSDC and Multisend deployed on it.

    `block_time_seconds`: a block each so many seconds; 0: a block for each transaction; None: only when `mine`
    is called. `slots_in_an_epoch` sets how far the tags `safe` and `finalized` trail (1: by 1 and 2 blocks).
    `keep_history` also saves the states of the last blocks, so that `reorg` can undo blocks mined before a
    restart: only for short chains, it costs seconds at some thousands of blocks. `deploy_contracts=False`
    leaves the chain bare.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int | None = None,
        *,
        chain_id: int = LOCAL_CHAIN_ID,
        block_time_seconds: float | None = 1,
        slots_in_an_epoch: int = 32,
        keep_history: bool = False,
        deploy_contracts: bool = True,
        listen_host: str = "127.0.0.1",
    ) -> None:
        super().__init__("chain", state_dir)
        self._listen_host = listen_host
        self.chain_id = chain_id
        self._preferred_port = port or PREFERRED_PORT
        self._block_time_seconds = block_time_seconds
        self._slots_in_an_epoch = slots_in_an_epoch
        self._keep_history = keep_history
        self._deploy_contracts = deploy_contracts
        self._folder = self.state_dir / "chain"
        self._saved_path = self._folder / "state.json.gz"
        self._exit_path = self._folder / "at-exit.json"
        self._load_path = self._folder / "load.json"
        self._port = 0
        self._saved_head: str | None = None
        self._saved_number = -1
        self._next_save_of_empty_blocks = 0.0
        self._is_saving = False
        self._request_id = 0
        self._kept: tuple[asyncio.AbstractEventLoop, aiohttp.ClientSession] | None = None
        deployer = dev_wallets()[DEPLOYER_INDEX].address
        self.token_address = created_address(deployer, 0)
        self.multisend_address = created_address(deployer, 1)
        self.smart_wallet_factory_address = create2_address(
            CREATE2_DEPLOYER, bytes(32), bytes.fromhex(load_artifact("SmartWalletFactory").bytecode[2:])
        )
        self.treasury_address = dev_wallets()[TREASURY_INDEX].address

    @property
    def url(self) -> str:
        """The JSON-RPC address."""
        return f"http://127.0.0.1:{self._port}"

    # -- starting and saving

    def _pick_ports(self, avoid: frozenset[int]) -> frozenset[int]:
        self._port = PortBook(self.state_dir).pick("chain", self._preferred_port, avoid=avoid)
        return frozenset({self._port})

    async def _before_start(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        await asyncio.to_thread(self._choose_state)

    def _choose_state(self) -> None:
        """Makes the newest complete state the one to load."""
        saved = _read_state(self._saved_path)
        at_exit = _read_state(self._exit_path)
        # It is removed at each start, so one that is there, and whole, is from the end of the last run and newer.
        if at_exit is not None:
            write_atomically(self._saved_path, gzip.compress(at_exit, compresslevel=1))
            saved = at_exit
        self._exit_path.unlink(missing_ok=True)  # anvil writes it in place
        self._load_path.unlink(missing_ok=True)
        if saved is not None:
            self._load_path.write_bytes(saved)
        elif self._saved_path.exists():
            raise PartFailedError(f"{self._saved_path} is damaged; move {self._folder} away to start a new chain")

    def _spawn(self) -> ChildProcess:
        if self._block_time_seconds is None:
            mining = ["--no-mining"]
        elif self._block_time_seconds == 0:
            mining = []
        else:
            mining = [f"--block-time={self._block_time_seconds:g}"]
        arguments = [
            f"--host={self._listen_host}",
            f"--port={self._port}",
            f"--chain-id={self.chain_id}",
            f"--mnemonic={MNEMONIC}",
            f"--accounts={WALLET_COUNT}",
            f"--slots-in-an-epoch={self._slots_in_an_epoch}",
            f"--prune-history={KEPT_STATES}",
            f"--cache-path={self._folder / 'cache'}",
            f"--dump-state={self._exit_path}",
            *([f"--load-state={self._load_path}"] if self._load_path.exists() else []),
            "--quiet",
            *mining,
        ]
        return start_process(
            ProcessSpec(
                name=self.name, argv=[str(locate_anvil()), *arguments], state_dir=self.state_dir, cwd=self._folder
            )
        )

    async def _is_ready(self) -> bool:
        try:
            return int(await self.rpc("eth_chainId"), 16) == self.chain_id
        except ChainCallError:
            return False

    async def _after_start(self) -> None:
        self._load_path.unlink(missing_ok=True)
        if self._deploy_contracts:
            await self.deploy()
        await self.save()

    async def _before_stop(self) -> None:
        # Not for long: anvil also saves by itself when it is stopped.
        with contextlib.suppress(ChainCallError, OSError, TimeoutError):
            async with asyncio.timeout(STOP_SAVE_SECONDS):
                await self.save_if_advanced(even_empty_blocks=True)

    async def save(self) -> None:
        """Writes the chain's state to the state folder now. Raises ChainCallError when the node is down."""
        if self._is_saving:
            return
        self._is_saving = True
        try:
            started = time.monotonic()
            # The head first: blocks that come while the state is dumped are seen as unsaved, not the reverse.
            head = await self.rpc("eth_getBlockByNumber", "latest", False)
            dump = await self.rpc("anvil_dumpState", *([True] if self._keep_history else []))
            await asyncio.to_thread(write_atomically, self._saved_path, bytes.fromhex(dump[2:]))
            self._saved_head, self._saved_number = head["hash"], int(head["number"], 16)
            now = time.monotonic()
            self._next_save_of_empty_blocks = now + (now - started) / SAVE_TIME_SHARE
        finally:
            self._is_saving = False

    async def save_if_advanced(self, *, even_empty_blocks: bool = False) -> bool:
        """Saves when the head is another than the saved one; cheap otherwise. Meant for a loop.

        Blocks that hold transactions are saved at once. Empty ones are too while the chain is short; later
        they wait so long that saving stays a small part of the time. True when it saved.
        Raises ChainCallError when the node is down.
        """
        head = await self.rpc("eth_getBlockByNumber", "latest", False)
        if head["hash"] == self._saved_head:
            return False
        if not even_empty_blocks and time.monotonic() < self._next_save_of_empty_blocks:
            newest = int(head["number"], 16)
            unsaved = range(self._saved_number + 1, newest + 1)
            # A head that did not rise, or rose far, means a reorganisation or much at once: save.
            if 0 < len(unsaved) <= 1000:
                counts = await self.rpc_batch(
                    [("eth_getBlockTransactionCountByNumber", (hex(number),)) for number in unsaved]
                )
                if all(count is not None and int(count, 16) == 0 for count in counts):
                    return False
        await self.save()
        return True

    async def deploy(self) -> None:
        """Puts token, Multisend and the payers' balances on the chain, as far as they are not there yet.

        The set-up is the deployer's first transactions, each with its own nonce: what a crash interrupted
        goes on with the next nonce, and the contracts' addresses follow from the nonces.
        """
        deployer = dev_wallets()[DEPLOYER_INDEX]
        steps: list[tuple[str | None, str]] = [
            (None, load_artifact("TestUSDC").bytecode),
            (None, load_artifact("Multisend").bytecode),
            *(
                (self.token_address, call_data("TestUSDC", "mint", payer.address, MINT_RAW))
                for payer in payer_wallets()
            ),
        ]
        done = int(await self.rpc("eth_getTransactionCount", deployer.address, "latest"), 16)
        if done >= len(steps):
            return
        hashes = [
            await self.send(deployer.private_key, to, data, nonce=nonce, gas=DEPLOY_GAS if to is None else TRANSFER_GAS)
            for nonce, (to, data) in enumerate(steps)
            if nonce >= done
        ]
        await self.mine()
        for tx_hash in hashes:
            if int((await self.wait_for_receipt(tx_hash))["status"], 16) != 1:
                raise PartFailedError(f"chain: setting up the test token failed in transaction {tx_hash}")

    # -- requests

    async def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC request; gives back its result.

        Raises ChainCallError with the node's message, or when the node does not answer within 30 s.
        """
        return (await self.rpc_batch([(method, params)]))[0]

    async def rpc_batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Several requests in one go; results in the order of the calls. Raises as `rpc` does."""
        requests = []
        for method, params in calls:
            self._request_id += 1
            requests.append({"jsonrpc": "2.0", "id": self._request_id, "method": method, "params": list(params)})
        try:
            async with (
                self._session() as session,
                session.post(self.url, json=requests if len(requests) > 1 else requests[0]) as response,
            ):
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ChainCallError(calls[0][0], f"no answer from {self.url} ({type(error).__name__})") from error
        answers = {item["id"]: item for item in (answer if isinstance(answer, list) else [answer])}
        results = []
        for request in requests:
            item = answers.get(request["id"], {"error": {"message": "the answer is missing"}})
            if "error" in item:
                raise ChainCallError(str(request["method"]), str(item["error"].get("message", item["error"])))
            results.append(item["result"])
        return results

    @contextlib.asynccontextmanager
    async def keeping_connections(self) -> AsyncIterator[None]:
        """Requests of this event loop use connections again while the block runs."""
        async with aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as session:
            self._kept = (asyncio.get_running_loop(), session)
            try:
                yield
            finally:
                self._kept = None

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The one that is kept, or one for this request, which belongs to no other event loop."""
        if self._kept is not None and self._kept[0] is asyncio.get_running_loop():
            yield self._kept[1]
        else:
            async with aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as session:
                yield session

    async def read(self, contract: str, function: str, *arguments: Any, address: str | None = None) -> Any:
        """Calls a reading function of one of our contracts; without `address`, of the deployed token or Multisend.

        Raises ChainCallError when it reverts.
        """
        _, _, outputs = _function(contract, function, len(arguments))
        target = address or {"TestUSDC": self.token_address}.get(contract, self.multisend_address)
        result = await self.rpc("eth_call", {"to": target, "data": call_data(contract, function, *arguments)}, "latest")
        values = decode(outputs, bytes.fromhex(result[2:]))
        return values[0] if len(values) == 1 else values

    async def block_number(self) -> int:
        """The head's number."""
        return int(await self.rpc("eth_blockNumber"), 16)

    async def token_balance_raw(self, address: str, *, token: str | None = None) -> int:
        """How much of the token an address holds, in raw units (10^-6 USDC)."""
        return int(await self.read("TestUSDC", "balanceOf", address, address=token))

    async def wait_for_receipt(self, tx_hash: str, *, timeout_seconds: float = 10) -> dict[str, Any]:
        """The receipt, as soon as there is one: anvil gives none for a moment even after mining.

        Raises PartFailedError when there is none in time; blocks must be mined for it.
        """
        found: dict[str, Any] = {}

        async def arrived() -> bool:
            found.update(await self.rpc("eth_getTransactionReceipt", tx_hash) or {})
            return bool(found)

        await wait_until(arrived, timeout_seconds=timeout_seconds, what=f"receipt of {tx_hash}")
        return found

    # -- time and forks

    async def mine(self, blocks: int = 1) -> None:
        """Mines so many blocks now, whatever the mining mode."""
        await self.rpc("anvil_mine", hex(blocks))

    async def reorg(self, depth: int, transactions: Sequence[tuple[str, int]] = ()) -> None:
        """Replaces the last `depth` blocks by others, which hold only these transactions.

        Each is a pair of a raw signed transaction (see `raw_transaction`) and the block to put it in,
        counted from 0 for the first replaced block.
        """
        await self.rpc("anvil_reorg", depth, [[raw, offset] for raw, offset in transactions])

    async def snapshot(self) -> str:
        """Takes a snapshot of the chain, for one `revert`."""
        return str(await self.rpc("evm_snapshot"))

    async def revert(self, snapshot: str) -> None:
        """Goes back to a snapshot. Raises ChainCallError when it is not known (any more)."""
        if not await self.rpc("evm_revert", snapshot):
            raise ChainCallError("evm_revert", f"there is no snapshot {snapshot}")

    async def set_balance(self, address: str, amount_wei: int) -> None:
        """Gives an address so much of the chain's own coin, for gas."""
        await self.rpc("anvil_setBalance", address, hex(amount_wei))

    # -- transactions

    async def send(
        self,
        private_key: str,
        to: str | None,
        data: str,
        *,
        nonce: int | None = None,
        gas: int = TRANSFER_GAS,
        value_wei: int = 0,
        max_fee_wei: int = MAX_FEE_WEI,
        priority_fee_wei: int = PRIORITY_FEE_WEI,
    ) -> HexStr:
        """Signs and sends a transaction and gives back its hash, without waiting for a block.

        `to` None creates a contract. Without a `nonce` it takes the next one, and another when it was
        taken concurrently, so that any number may send for one key at once. Raises ChainCallError when refused.
        """
        sender = _account().from_key(private_key).address
        for attempts_left in reversed(range(NONCE_ATTEMPTS_MAX)):
            number = nonce
            if number is None:
                number = int(await self.rpc("eth_getTransactionCount", sender, "pending"), 16)
            raw, tx_hash = self._sign(
                private_key,
                {
                    **({} if to is None else {"to": to_checksum_address(to)}),
                    "data": data,
                    "nonce": number,
                    "gas": gas,
                    "value": value_wei,
                    "maxFeePerGas": max_fee_wei,
                    "maxPriorityFeePerGas": priority_fee_wei,
                },
            )
            try:
                await self.rpc("eth_sendRawTransaction", raw)
            except ChainCallError as error:
                # Equal fees everywhere, so a transaction with a taken nonce is refused and never replaces one.
                taken = ("nonce too low", "underpriced", "already imported", "already known")
                if nonce is None and attempts_left and any(sign in error.message.lower() for sign in taken):
                    continue
                raise
            return tx_hash
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _sign(self, private_key: str, fields: Mapping[str, Any]) -> tuple[HexStr, HexStr]:
        transaction = {"type": 2, "chainId": self.chain_id, "value": 0, **fields}
        signed = _account().sign_transaction(transaction, private_key)
        return HexStr("0x" + bytes(signed.raw_transaction).hex()), HexStr("0x" + bytes(signed.hash).hex())

    async def pay(
        self,
        private_key: str,
        to: str,
        amount_raw: int,
        *,
        token: str | None = None,
        nonce: int | None = None,
    ) -> HexStr:
        """Sends a token transfer and gives back the transaction's hash; the receipt comes later.

        A transfer of more than the balance is mined all the same, and reverts.
        """
        data = call_data("TestUSDC", "transfer", to, amount_raw)
        return await self.send(private_key, token or self.token_address, data, nonce=nonce)

    async def speed_up(self, private_key: str, tx_hash: str) -> HexStr:
        """Replaces a transaction that waits to be mined by the same one with twice the fees: a new hash.

        Raises ChainCallError when it is not known, or mined already.
        """
        old = await self.rpc("eth_getTransactionByHash", tx_hash)
        if old is None:
            raise ChainCallError("eth_getTransactionByHash", f"transaction {tx_hash} is not known")
        return await self.send(
            private_key,
            old["to"],
            old["input"],
            nonce=int(old["nonce"], 16),
            gas=int(old["gas"], 16),
            max_fee_wei=2 * int(old["maxFeePerGas"], 16),
            priority_fee_wei=2 * int(old["maxPriorityFeePerGas"], 16),
        )

    async def raw_transaction(self, tx_hash: str) -> HexStr:
        """The signed bytes of a transaction, for `reorg`. Raises ChainCallError when it is not known."""
        raw = await self.rpc("eth_getRawTransactionByHash", tx_hash)
        if raw is None:
            raise ChainCallError("eth_getRawTransactionByHash", f"transaction {tx_hash} is not known")
        return HexStr(raw)

    async def deploy_look_alike(self, wallet: Wallet | None = None) -> ChecksumAddress:
        """Deploys a second TestUSDC that is not the configured token; its deployer (payer 8) may mint.

        Mines a block for it. Raises ChainCallError when refused.
        """
        owner = wallet or payer_wallets()[-1]
        tx_hash = await self.send(owner.private_key, None, load_artifact("TestUSDC").bytecode, gas=DEPLOY_GAS)
        await self.mine()
        return to_checksum_address((await self.wait_for_receipt(tx_hash))["contractAddress"])

    async def deploy_token(self, contract: str, symbol: str, decimals: int) -> ChecksumAddress:
        """Deploys a PlainToken, FeeToken, LyingToken or PriceFeed; its deployer (payer 8) owns it and may `mint` it.

        Mines a block for it. Raises ChainCallError when refused.
        """
        code = load_artifact(contract).bytecode + encode(["string", "uint8"], [symbol, decimals]).hex()
        tx_hash = await self.send(payer_wallets()[-1].private_key, None, code, gas=DEPLOY_GAS)
        await self.mine()
        return to_checksum_address((await self.wait_for_receipt(tx_hash))["contractAddress"])

    async def mint(self, to: str, amount_raw: int, *, token: str | None = None, owner: Wallet | None = None) -> HexStr:
        """Sends a mint of test USDC (or of a look-alike, by its owner); gives back the transaction's hash."""
        key = (owner or dev_wallets()[DEPLOYER_INDEX]).private_key
        return await self.send(key, token or self.token_address, call_data("TestUSDC", "mint", to, amount_raw))

    # -- payments that others send

    def sign_payment(
        self,
        private_key: str,
        to: str,
        amount_raw: int,
        *,
        token: str | None = None,
        valid_after: int = 0,
        valid_before: int = 2**48,
        for_receiver: bool = False,
        nonce: bytes | None = None,
        payer: str | None = None,
    ) -> SignedPayment:
        """Signs an EIP-3009 authorization, without a `nonce` with a fresh one. The times are Unix seconds on the chain.

        `for_receiver` signs for receiveWithAuthorization, which only the payee can use. `payer` is the key's own
        address, or the smart wallet that the key owns.
        """
        target = to_checksum_address(token or self.token_address)
        payer = to_checksum_address(payer or _account().from_key(private_key).address)
        payee = to_checksum_address(to)
        nonce = nonce or secrets.token_bytes(32)
        v, r, s = _signed(
            private_key,
            token=target,
            chain_id=self.chain_id,
            primary_type="ReceiveWithAuthorization" if for_receiver else "TransferWithAuthorization",
            fields=[
                ("from", "address"),
                ("to", "address"),
                ("value", "uint256"),
                ("validAfter", "uint256"),
                ("validBefore", "uint256"),
                ("nonce", "bytes32"),
            ],
            message={
                "from": payer,
                "to": payee,
                "value": amount_raw,
                "validAfter": valid_after,
                "validBefore": valid_before,
                "nonce": nonce,
            },
        )
        return SignedPayment(target, payer, payee, amount_raw, valid_after, valid_before, nonce, v, r, s)

    async def sign_permit(
        self, private_key: str, spender: str, amount_raw: int, *, deadline: int = 2**48, token: str | None = None
    ) -> tuple[int, bytes, bytes]:
        """Signs an EIP-2612 permit with the holder's next nonce; gives back v, r, s."""
        target = token or self.token_address
        holder = _account().from_key(private_key).address
        return _signed(
            private_key,
            token=target,
            chain_id=self.chain_id,
            primary_type="Permit",
            fields=[
                ("owner", "address"),
                ("spender", "address"),
                ("value", "uint256"),
                ("nonce", "uint256"),
                ("deadline", "uint256"),
            ],
            message={
                "owner": holder,
                "spender": spender,
                "value": amount_raw,
                "nonce": await self.read("TestUSDC", "nonces", holder, address=target),
                "deadline": deadline,
            },
        )

    def sign_cancellation(
        self, private_key: str, nonce: bytes, *, token: str | None = None
    ) -> tuple[int, bytes, bytes]:
        """Signs the cancellation of an authorization; gives back v, r, s."""
        return _signed(
            private_key,
            token=token or self.token_address,
            chain_id=self.chain_id,
            primary_type="CancelAuthorization",
            fields=[("authorizer", "address"), ("nonce", "bytes32")],
            message={"authorizer": _account().from_key(private_key).address, "nonce": nonce},
        )

    async def pay_relayed(self, relayer_key: str, payment: SignedPayment) -> HexStr:
        """A relayer sends another account's signed payment: the transaction's sender is not the payer."""
        data = call_data("TestUSDC", "transferWithAuthorization", *payment.as_arguments())
        return await self.send(relayer_key, payment.token, data, gas=SIGNED_TRANSFER_GAS)

    async def pay_bundle(self, relayer_key: str, payments: Sequence[SignedPayment]) -> HexStr:
        """One transaction that executes the signed payments of several payers, in this order."""
        data = call_data("Multisend", "sendSigned", [(payment.token, *payment.as_arguments()) for payment in payments])
        return await self.send(relayer_key, self.multisend_address, data, gas=SIGNED_TRANSFER_GAS * (1 + len(payments)))

    async def pay_bundle_approved(self, relayer_key: str, payments: Sequence[tuple[str, str, str, int]]) -> HexStr:
        """The same through allowances for Multisend: tuples of token, payer, receiver and raw amount."""
        data = call_data("Multisend", "sendApproved", [tuple(payment) for payment in payments])
        return await self.send(relayer_key, self.multisend_address, data, gas=SIGNED_TRANSFER_GAS * (1 + len(payments)))

    # -- smart wallets

    def smart_wallet_address(self, owner: str, salt: int = 0) -> ChecksumAddress:
        """Where the owner's smart wallet lies, or will lie: it can be paid and can sign before it is deployed."""
        arguments = encode(["address"], [owner])
        creation_code = bytes.fromhex(load_artifact("SmartWallet").bytecode[2:]) + arguments
        return create2_address(self.smart_wallet_factory_address, salt.to_bytes(32, "big"), creation_code)

    async def deploy_smart_wallet_factory(self) -> ChecksumAddress:
        """Puts the factory on the chain unless it is there, and mines a block for it.

        Raises ChainCallError when refused.
        """
        address = self.smart_wallet_factory_address
        if await self.rpc("eth_getCode", address, "latest") == "0x":
            data = "0x" + bytes(32).hex() + load_artifact("SmartWalletFactory").bytecode[2:]
            await self._mine_successfully(payer_wallets()[-1].private_key, CREATE2_DEPLOYER, data, gas=DEPLOY_GAS)
        return address

    async def deploy_smart_wallet(self, owner: str, salt: int = 0) -> ChecksumAddress:
        """Puts the owner's smart wallet on the chain, and the factory if need be; payer 8 pays the gas.

        Mines a block for each. Raises ChainCallError when refused.
        """
        factory = await self.deploy_smart_wallet_factory()
        data = call_data("SmartWalletFactory", "deploy", owner, salt.to_bytes(32, "big"))
        await self._mine_successfully(payer_wallets()[-1].private_key, factory, data, gas=SMART_WALLET_GAS)
        return self.smart_wallet_address(owner, salt)

    async def _mine_successfully(self, private_key: str, to: str, data: str, *, gas: int) -> None:
        tx_hash = await self.send(private_key, to, data, gas=gas)
        await self.mine()
        if int((await self.wait_for_receipt(tx_hash))["status"], 16) != 1:
            raise ChainCallError("eth_sendRawTransaction", f"transaction {tx_hash} reverted")

    async def pay_from_smart_wallet(
        self, owner_key: str, to: str, amount_raw: int, *, salt: int = 0, relayer_key: str | None = None
    ) -> HexStr:
        """Has the owner's deployed smart wallet transfer tokens; gives back the transaction's hash.

        The owner sends the transaction, or the relayer with the owner's signature: either way its sender is not the
        wallet, which pays.
        """
        owner = _account().from_key(owner_key).address
        wallet = self.smart_wallet_address(owner, salt)
        call = (self.token_address, 0, bytes.fromhex(call_data("TestUSDC", "transfer", to, amount_raw)[2:]))
        if relayer_key is None:
            return await self.send(
                owner_key, wallet, call_data("SmartWallet", "execute", *call), gas=SIGNED_TRANSFER_GAS
            )
        number = await self.read("SmartWallet", "nonce", address=wallet)
        call_hash = await self.read("SmartWallet", "callHash", number, *call, address=wallet)
        signature = bytes(_account().unsafe_sign_hash(call_hash, owner_key).signature)
        data = call_data("SmartWallet", "executeSigned", *call, signature)
        return await self.send(relayer_key, wallet, data, gas=SIGNED_TRANSFER_GAS)


def _read_state(path: Path) -> bytes | None:
    """A saved state as JSON text; None when there is none or it is not complete."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        state = json.loads(content)
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return content if isinstance(state, dict) and "best_block_number" in state else None
