"""Deposit addresses: derived as the standards say, and controlled by who they are said to be controlled by."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from bip_utils import Bip32Slip10Secp256k1, Bip44, Bip44Changes, Bip44Coins, Bip49, Bip49Coins, Bip84, Bip84Coins
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_keys.datatypes import PrivateKey

from chain.derivation.addresses import derive_address, derives_as_stored, evm_address, salt_of
from chain.derivation.bip32 import parse_account_key, parse_extended_key
from chain.derivation.create2 import create2_address, init_code, init_code_hash, salt_of_account, salt_of_charge
from chain.derivation.descriptors import checksum, descriptor
from domain.deposits.methods import AddressRing, DepositAddress, Scheme
from domain.errors import InvalidInput
from tests.chain.bip32_vectors import INVALID_KEYS, PUBLIC_KEYS

TREASURY: Final = "0x7aC0E8A0f3d7E1bC0A5f1dD9E90e4B14b5dA3B90".lower()
CHARGE: Final = UUID("2b7e1516-28ae-d2a6-abf7-158809cf4f3c")
CREATED: Final = datetime(2026, 11, 29, tzinfo=UTC)
PUBLIC_STEPS: Final = sorted(
    (parent, name) for name in PUBLIC_KEYS if (parent := name.rpartition("/")[0]) in PUBLIC_KEYS and name[-1] != "H"
)

KINDS: Final = [
    ("m/44'/0'/{}'", Bip44, Bip44Coins.BITCOIN, "xpub", "1"),
    ("m/49'/0'/{}'", Bip49, Bip49Coins.BITCOIN, "ypub", "3"),
    ("m/84'/0'/{}'", Bip84, Bip84Coins.BITCOIN, "zpub", "bc1q"),
    ("m/84'/1'/{}'", Bip84, Bip84Coins.BITCOIN_TESTNET, "vpub", "tb1q"),
    ("m/44'/2'/{}'", Bip44, Bip44Coins.LITECOIN, "xpub", "L"),
    ("m/49'/2'/{}'", Bip49, Bip49Coins.LITECOIN, "ypub", "M"),
    ("m/84'/2'/{}'", Bip84, Bip84Coins.LITECOIN, "zpub", "ltc1q"),
    ("m/44'/3'/{}'", Bip44, Bip44Coins.DOGECOIN, "dgub", "D"),
    ("m/44'/60'/{}'", Bip44, Bip44Coins.ETHEREUM, "xpub", "0x"),
]


def account_of(kind: Any, coin: Any, seed: bytes, account: int) -> Any:
    return kind.FromSeed(seed, coin).Purpose().Coin().Account(account)


def ring(path: str, xpub: str) -> AddressRing:
    return AddressRing(
        id=uuid4(), path=path, xpub=xpub, fingerprint="00000000", next_index=0, gap_limit=20, created_at=CREATED
    )


def xpub_of(seed: bytes, path: str = "m/44'/60'/0'") -> str:
    return str(Bip32Slip10Secp256k1.FromSeedAndPath(seed, path).PublicKey().ToExtended())


@pytest.mark.parametrize("name", PUBLIC_KEYS)
def test_an_extended_key_of_the_vectors_is_read_and_written_alike(name: str) -> None:
    assert str(parse_extended_key(PUBLIC_KEYS[name])) == PUBLIC_KEYS[name]


def test_the_vectors_have_public_steps() -> None:
    assert len(PUBLIC_STEPS) == 6


@pytest.mark.parametrize(("parent", "child"), PUBLIC_STEPS)
def test_a_child_is_the_one_of_the_vectors(parent: str, child: str) -> None:
    index = int(child.rpartition("/")[2])
    assert str(parse_extended_key(PUBLIC_KEYS[parent]).child(index)) == PUBLIC_KEYS[child]


@pytest.mark.parametrize("name", INVALID_KEYS)
def test_an_invalid_key_of_the_vectors_is_refused_without_being_shown(name: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_extended_key(INVALID_KEYS[name])
    assert refusal.value.field == "xpub"
    assert INVALID_KEYS[name][8:40] not in refusal.value.message


@pytest.mark.parametrize(("path", "kind", "coin", "prefix", "start"), KINDS)
def test_addresses_are_those_of_another_library(path: str, kind: Any, coin: Any, prefix: str, start: str) -> None:
    numbers = random.Random(path)
    for _ in range(4):
        seed, account = numbers.randbytes(32), numbers.choice([0, 1, 2**31 - 1])
        theirs = account_of(kind, coin, seed, account)
        key = ring(path.format(account), theirs.PublicKey().ToExtended())
        assert key.xpub.startswith(prefix)
        for index in [0, 1, numbers.randrange(2**31), 2**31 - 1]:
            expected = theirs.Change(Bip44Changes.CHAIN_EXT).AddressIndex(index).PublicKey().ToAddress()
            found = derive_address(Scheme.XPUB, ring=key, index=index)
            assert found == expected
            assert found.startswith(start)


def test_the_private_key_of_a_child_signs_for_its_evm_address() -> None:
    """Fault 1: an address made from the compressed key has the right form, and no key controls it."""
    numbers = random.Random(1)
    for index in range(5):
        seed = numbers.randbytes(32)
        key = ring("m/44'/60'/0'", xpub_of(seed))
        child = Bip32Slip10Secp256k1.FromSeedAndPath(seed, f"m/44'/60'/0'/0/{index}").PrivateKey().Raw().ToBytes()
        message = encode_defunct(text="mine")
        signed = Account.sign_message(message, child)
        assert Account.recover_message(message, signature=signed.signature) == derive_address(
            Scheme.XPUB, ring=key, index=index
        )


def test_an_evm_address_is_that_of_the_whole_point() -> None:
    key = PrivateKey((7).to_bytes(32, "big")).public_key
    assert evm_address(key.to_compressed_bytes()) == key.to_checksum_address()
    assert evm_address(b"\x04" + key.to_bytes()) == key.to_checksum_address()


@pytest.mark.parametrize(
    ("path", "text", "field", "says"),
    [
        ("m/44'/60'/0'", "zpub", "xpub", "expected xpub for EVM at m/44'/60'/0', got zpub"),
        ("m/84'/0'/0'", "xpub", "xpub", "expected zpub for Bitcoin at m/84'/0'/0', got xpub"),
        ("m/84'/1'/0'", "zpub", "xpub", "expected vpub for Bitcoin testnet"),
        ("m/44'/3'/0'", "xpub", "xpub", "expected dgub for Dogecoin"),
        ("m/44'/60'/1'", "xpub", "xpub", "it is the key of account 0': expected 1'"),
        ("m/44'/60'", "xpub", "path", "expected the path of an account"),
        ("m/44/60/0", "xpub", "path", "expected the path of an account"),
        ("m/44'/60'/0'/0", "xpub", "path", "expected the path of an account"),
        ("m/44'/61'/0'", "xpub", "path", "coin 61' is not supported"),
        ("m/84'/60'/0'", "xpub", "path", "purpose 84' is not one of EVM's"),
        ("m/44'/60'/2147483648'", "xpub", "path", "expected an account below"),
    ],
)
def test_a_key_that_does_not_belong_to_the_path_is_refused(path: str, text: str, field: str, says: str) -> None:
    kind: Any = {"xpub": Bip44, "zpub": Bip84}[text]
    coin = {"xpub": Bip44Coins.BITCOIN, "zpub": Bip84Coins.BITCOIN}[text]
    xpub = account_of(kind, coin, bytes(32), 0).PublicKey().ToExtended()
    with pytest.raises(InvalidInput, match=says) as refusal:
        parse_account_key(xpub, path)
    assert refusal.value.field == field


@pytest.mark.parametrize(("path", "depth"), [("m/44'/60'", 2), ("m/44'/60'/0'/0", 4)])
def test_a_key_that_is_no_accounts_is_refused(path: str, depth: int) -> None:
    with pytest.raises(InvalidInput, match=f"depth 3, got depth {depth}"):
        parse_account_key(xpub_of(bytes(32), path), "m/44'/60'/0'")


def test_a_private_key_is_refused_by_name() -> None:
    private = Bip32Slip10Secp256k1.FromSeedAndPath(bytes(32), "m/44'/60'/0'").PrivateKey().ToExtended()
    with pytest.raises(InvalidInput, match=r"private key \(xprv\)") as refusal:
        parse_account_key(private, "m/44'/60'/0'")
    assert private[8:40] not in refusal.value.message


def test_the_same_key_under_another_prefix_has_the_same_material() -> None:
    seed = bytes(32)
    account = account_of(Bip84, Bip84Coins.BITCOIN, seed, 0).PublicKey().ToExtended()
    plain = Bip32Slip10Secp256k1.FromSeedAndPath(seed, "m/84'/0'/0'").PublicKey().ToExtended()
    first, second = parse_extended_key(account), parse_extended_key(plain)
    assert (first.prefix, second.prefix) == ("zpub", "xpub")
    assert (first.material, first.fingerprint) == (second.material, second.fingerprint)


@pytest.mark.parametrize("index", [-1, 2**31])
def test_a_hardened_child_has_no_public_parent(index: int) -> None:
    key = ring("m/44'/60'/0'", xpub_of(bytes(32)))
    with pytest.raises(InvalidInput, match="expected 0 to 2147483647"):
        derive_address(Scheme.XPUB, ring=key, index=index)


@pytest.mark.parametrize(
    ("deployer", "salt", "code", "expected"),
    [
        ("00" * 20, "00" * 32, "00", "0x4D1A2e2bB4F88F0250f26Ffff098B0b30B26BF38"),
        ("deadbeef" + "00" * 16, "00" * 32, "00", "0xB928f69Bb1D91Cd65274e3c79d8986362984fDA3"),
        (
            "00000000000000000000000000000000deadbeef",
            "00000000000000000000000000000000000000000000000000000000cafebabe",
            "deadbeef",
            "0x60f3f640a8508fC6a86d45DF051962668E1e8AC7",
        ),
        ("00" * 20, "00" * 32, "", "0xE33C0C7F7df4809055C3ebA6c09CFe4BaF1BD9e0"),
    ],
)
def test_a_create2_address_is_that_of_the_standards_examples(
    deployer: str, salt: str, code: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eth_utils.crypto import keccak

    monkeypatch.setattr("chain.derivation.create2.CREATE2_DEPLOYER", "0x" + deployer)
    assert create2_address("0x" + salt, "0x" + keccak(bytes.fromhex(code)).hex()) == expected


def test_a_create2_address_follows_from_owner_and_treasury_alone() -> None:
    own, charge = salt_of_account("acct_1"), salt_of_charge(CHARGE)
    other = "0x" + "11" * 20
    addresses = {
        derive_address(Scheme.CREATE2, treasury=treasury, salt=salt)
        for treasury in (TREASURY, other)
        for salt in (own, charge, salt_of_account("acct_2"), salt_of_account(str(CHARGE)))
    }
    assert len(addresses) == 8
    assert init_code(TREASURY).endswith(bytes(12) + bytes.fromhex(TREASURY[2:]))
    assert create2_address(own, init_code_hash(TREASURY)) in addresses


def test_the_derivation_of_released_addresses_does_not_change() -> None:
    """A change of contract, compiler or salt strands what is paid to addresses that were given out."""
    assert salt_of_account("acct_1") == "0xaa898244072bc304a87e92403f1ed6287187addbe0f752d8c6b90d155dd9cfd9"
    assert (
        derive_address(Scheme.CREATE2, treasury=TREASURY, salt=salt_of_account("acct_1"))
        == "0x9Fb3C0e3941cE73d50E2F3A0af26E5bc61e234EE"
    )


def row(**values: Any) -> DepositAddress:
    fields: dict[str, Any] = {
        "id": uuid4(),
        "chain_id": 31337,
        "scheme": Scheme.CREATE2,
        "ring_id": None,
        "index": None,
        "salt": None,
        "treasury": None,
        "billing_account_id": "acct_1",
        "charge_id": None,
        "active_at": CREATED,
        "created_at": CREATED,
    }
    return DepositAddress(**(fields | values))


def test_a_row_derives_as_stored_only_for_its_owner() -> None:
    address = derive_address(Scheme.CREATE2, treasury=TREASURY, salt=salt_of_account("acct_1"))
    own = row(address=address, salt=salt_of_account("acct_1"), treasury=TREASURY)
    assert salt_of(own) == own.salt
    assert derives_as_stored(own, ring=None, treasuries=[TREASURY])
    assert not derives_as_stored(own, ring=None, treasuries=["0x" + "11" * 20])
    theirs = "0x" + "11" * 20
    elsewhere = derive_address(Scheme.CREATE2, treasury=theirs, salt=salt_of_account("acct_1"))
    forged = own.model_copy(update={"address": elsewhere, "treasury": theirs})
    assert not derives_as_stored(forged, ring=None, treasuries=[TREASURY])
    assert not derives_as_stored(own.model_copy(update={"treasury": None}), ring=None, treasuries=[TREASURY])
    # The forged row names the salt of the address that it claims.
    assert not derives_as_stored(
        own.model_copy(update={"billing_account_id": "acct_2"}), ring=None, treasuries=[TREASURY]
    )


def test_a_charges_row_derives_as_stored_only_for_the_charge() -> None:
    charge_id = uuid4()
    salt = salt_of_charge(charge_id)
    address = derive_address(Scheme.CREATE2, treasury=TREASURY, salt=salt)
    own = row(address=address, salt=salt, treasury=TREASURY, charge_id=charge_id)
    assert derives_as_stored(own, ring=None, treasuries=[TREASURY])
    for other in (uuid4(), None):
        assert not derives_as_stored(own.model_copy(update={"charge_id": other}), ring=None, treasuries=[TREASURY])


def test_a_row_of_a_ring_derives_as_stored_only_at_its_index() -> None:
    key = ring("m/44'/60'/0'", xpub_of(bytes(32)))
    address = derive_address(Scheme.XPUB, ring=key, index=3)
    own = row(address=address, scheme=Scheme.XPUB, ring_id=key.id, index=3)
    assert derives_as_stored(own, ring=key, treasuries=[TREASURY])
    assert not derives_as_stored(own.model_copy(update={"index": 4}), ring=key, treasuries=[TREASURY])
    assert not derives_as_stored(own, ring=None, treasuries=[TREASURY])
    other = key.model_copy(update={"xpub": xpub_of(bytes([1] * 32))})
    assert not derives_as_stored(own, ring=other, treasuries=[TREASURY])
    assert not derives_as_stored(own, ring=key.model_copy(update={"id": uuid4()}), treasuries=[TREASURY])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raw(deadbeef)", "89f8spxm"),
        ("pkh(02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5)", "8fhd9pwu"),
    ],
)
def test_the_checksum_of_a_descriptor_is_the_standards(text: str, expected: str) -> None:
    assert checksum(text) == expected


@pytest.mark.parametrize(
    ("path", "kind", "coin", "form"),
    [
        ("m/44'/0'/0'", Bip44, Bip44Coins.BITCOIN, "pkh(xpub{}/0/*)"),
        ("m/49'/0'/0'", Bip49, Bip49Coins.BITCOIN, "sh(wpkh(xpub{}/0/*))"),
        ("m/84'/0'/0'", Bip84, Bip84Coins.BITCOIN, "wpkh(xpub{}/0/*)"),
        ("m/84'/1'/0'", Bip84, Bip84Coins.BITCOIN_TESTNET, "wpkh(tpub{}/0/*)"),
        ("m/44'/60'/0'", Bip44, Bip44Coins.ETHEREUM, None),
    ],
)
def test_a_descriptor_names_the_key_as_every_wallet_reads_it(path: str, kind: Any, coin: Any, form: str | None) -> None:
    xpub = account_of(kind, coin, bytes(32), 0).PublicKey().ToExtended()
    found = descriptor(xpub, path)
    if form is None:
        assert found is None
        return
    assert found is not None
    text, _, check = found.partition("#")
    start, end = form.split("{}")
    assert text.startswith(start) and text.endswith(end)
    key = parse_extended_key(text[len(start) - 4 : len(text) - len(end)])
    assert key.material == parse_extended_key(xpub).material
    assert check == checksum(text)
