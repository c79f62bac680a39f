"""Signing a sweep's plan, on a machine that needs no network: keys are read once, and are in no output.

Every transaction is checked against the plan before it is signed, and again before it is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any, Final

from coincurve import PrivateKey, PublicKey
from eth_keys.datatypes import PrivateKey as SigningKey
from eth_keys.datatypes import Signature

from chain.addresses import checksum_address
from chain.authorizations import authorization_digest, domain_separator, transfer_calldata
from chain.collection import collect_call, collector_address, collector_deployment
from chain.derivation.addresses import evm_address
from chain.derivation.create2 import CREATE2_DEPLOYER
from chain.derivation.encodings import decode_base58check
from chain.derivation.networks import PRIVATE_VERSIONS
from domain.deposits.methods import EXTERNAL_CHAIN
from domain.deposits.sweeps import Plan, Step, StepKind, SweepAuthorization
from domain.errors import InvalidInput
from domain.identifiers import same_address
from domain.payments.authorizations import Authorization, SignedAuthorization, TokenDomain

SECRET_EXPECTED: Final = "the private key that pays the gas (0x and 64 hex digits), or an account's xprv"
_KEY: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{64})", re.ASCII)
_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


class AccountKey:
    """The extended private key of an account: it signs for each of its addresses. Never shown."""

    def __init__(self, text: str) -> None:
        data = decode_base58check(text.strip())
        if data is None or len(data) != 78 or int.from_bytes(data[:4], "big") not in PRIVATE_VERSIONS:
            raise InvalidInput("key", f"expected {SECRET_EXPECTED} on standard input, got something else (not shown)")
        self._chain_code = data[13:45]
        self._key = data[46:]

    def __repr__(self) -> str:
        return "AccountKey(…)"

    def child(self, index: int) -> bytes:
        """The private key of the address with that number."""
        key, chain_code = _child(self._key, self._chain_code, EXTERNAL_CHAIN)
        return _child(key, chain_code, index)[0]


def _child(key: bytes, chain_code: bytes, index: int) -> tuple[bytes, bytes]:
    public = PrivateKey(key).public_key.format()
    digest = hmac.digest(chain_code, public + index.to_bytes(4, "big"), hashlib.sha512)
    number = (int.from_bytes(digest[:32], "big") + int.from_bytes(key, "big")) % _CURVE_ORDER
    return number.to_bytes(32, "big"), digest[32:]


def sign_plan(plan: Plan, secret: str, *, nonce: int | None) -> Plan:
    """The plan with what this secret signs: an account's key its addresses' authorizations, another the transactions.

    Raises `InvalidInput` where the plan is not what it says, or the key is another's.
    """
    found = _KEY.fullmatch(secret.strip())
    if found is None:
        account = AccountKey(secret)
        return plan.model_copy(update={"steps": tuple(_authorized(plan, step, account) for step in plan.steps)})
    key = SigningKey(bytes.fromhex(found[1]))
    sender = key.public_key.to_checksum_address()
    if plan.sender is not None and not same_address(plan.sender, sender):
        raise InvalidInput("key", f"the plan is for {plan.sender}, this is the key of {sender}")
    first = nonce if nonce is not None else plan.nonce
    if first is None:
        raise InvalidInput("--nonce", f"the plan was made without --from: expected the next nonce of {sender}")
    steps = []
    for number, step in enumerate(plan.steps):
        data = call_data(plan, step)
        raw = _signed_transaction(plan, step, data, key, first + number)
        steps.append(step.model_copy(update={"data": "0x" + data.hex(), "raw_transaction": "0x" + raw.hex()}))
    return plan.model_copy(update={"steps": tuple(steps), "sender": sender, "nonce": first})


def call_data(plan: Plan, step: Step) -> bytes:
    """What a step's transaction has to call, computed from its parts. Raises `InvalidInput` where the file differs."""
    match step.kind:
        case StepKind.DEPLOY_COLLECTOR:
            to, data = CREATE2_DEPLOYER, collector_deployment()
        case StepKind.COLLECT:
            if step.token is None or any(one.salt is None for one in step.addresses):
                raise InvalidInput("plan", "a collection names a token, and each address its salt")
            salts = [one.salt or "" for one in step.addresses]
            to, data = collector_address(), collect_call(step.treasury, salts, [step.token])
        case StepKind.AUTHORIZATION:
            to, data = step.to, _transfer_of(plan, step)
    if not same_address(step.to, to):
        raise InvalidInput("plan", f"a step of kind {step.kind} calls {step.to}, expected {to}")
    if step.data is not None and step.data != "0x" + data.hex():
        raise InvalidInput("plan", f"the data of a step of kind {step.kind} is not that of its parts")
    return data


def _transfer_of(plan: Plan, step: Step) -> bytes:
    message, authorization = authorization_of(step), step.authorization
    assert authorization is not None
    if authorization.signature is None:
        raise InvalidInput("plan", f"{message.payer} has not signed: sign with the account's xprv first")
    signature = bytes.fromhex(authorization.signature[2:])
    signed_by = _signer(_digest(plan, step, message, authorization), signature)
    if not same_address(signed_by, message.payer):
        raise InvalidInput("plan", f"the signature for {message.payer} is that of {signed_by}")
    return transfer_calldata(SignedAuthorization(authorization=message, signature=signature), is_contract=False)


def authorization_of(step: Step) -> Authorization:
    """The message that a step's address signs. Raises `InvalidInput` where the step is none of that kind."""
    if step.authorization is None or len(step.addresses) != 1 or step.token is None:
        raise InvalidInput("plan", "an authorization names one address and a token")
    [address], authorization = step.addresses, step.authorization
    return Authorization(
        payer=checksum_address(address.address),
        to=checksum_address(step.treasury),
        value_raw=address.amount_raw,
        valid_after=authorization.valid_after,
        valid_before=authorization.valid_before,
        nonce=authorization.nonce,
    )


def _digest(plan: Plan, step: Step, message: Authorization, authorization: SweepAuthorization) -> bytes:
    assert step.token is not None
    domain = TokenDomain(name=authorization.name, version=authorization.version)
    return authorization_digest(message, domain_separator(domain, chain_id=plan.chain_id, token=step.token))


def _authorized(plan: Plan, step: Step, account: AccountKey) -> Step:
    if step.kind is not StepKind.AUTHORIZATION or step.authorization is None:
        return step
    message = authorization_of(step)
    index = step.addresses[0].index
    if index is None:
        raise InvalidInput("plan", f"{message.payer} has no index")
    key = account.child(index)
    if not same_address(evm_address(PublicKey.from_secret(key).format()), message.payer):
        return step  # of another account's key: the file may hold several
    signature = SigningKey(key).sign_msg_hash(_digest(plan, step, message, step.authorization))
    text = "0x" + (signature.r.to_bytes(32, "big") + signature.s.to_bytes(32, "big") + bytes([27 + signature.v])).hex()
    return step.model_copy(update={"authorization": step.authorization.model_copy(update={"signature": text})})


def _signer(digest: bytes, signature: bytes) -> str:
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise InvalidInput("plan", "a signature has 65 bytes, and ends with 27 or 28")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    recovered = Signature(vrs=(signature[64] - 27, r, s)).recover_public_key_from_msg_hash(digest)
    return str(recovered.to_checksum_address())


def _fields(plan: Plan, step: Step, data: bytes, nonce: int) -> dict[str, Any]:
    return {
        "type": 2,
        "chainId": plan.chain_id,
        "nonce": nonce,
        "to": checksum_address(step.to),
        "value": 0,
        "data": data,
        "gas": step.gas,
        "maxFeePerGas": plan.max_fee_per_gas_wei,
        "maxPriorityFeePerGas": plan.max_priority_fee_per_gas_wei,
    }


def _signed_transaction(plan: Plan, step: Step, data: bytes, key: SigningKey, nonce: int) -> bytes:
    from eth_account import Account

    return bytes(Account.sign_transaction(_fields(plan, step, data, nonce), key.to_bytes()).raw_transaction)


def check_signed(plan: Plan) -> list[tuple[str, str, int, bytes]]:
    """Hash, sender, nonce and bytes of each signed transaction, checked against its step.

    Raises `InvalidInput` where one is missing, or is not what the plan says.
    """
    from eth_account import Account
    from eth_utils.crypto import keccak

    checked = []
    for number, step in enumerate(plan.steps):
        if step.raw_transaction is None or plan.nonce is None or plan.sender is None:
            raise InvalidInput("FILE", f"transaction {number} is not signed: run settle sweep sign")
        raw = bytes.fromhex(step.raw_transaction[2:])
        sender = str(Account.recover_transaction(raw))
        nonce = plan.nonce + number
        expected = _unsigned_hash(_fields(plan, step, call_data(plan, step), nonce))
        if _hash_without_signature(raw) != expected or not same_address(sender, plan.sender):
            raise InvalidInput("FILE", f"transaction {number} is not the one that the plan describes")
        checked.append(("0x" + keccak(raw).hex(), sender, nonce, raw))
    return checked


def _unsigned_hash(fields: dict[str, Any]) -> bytes:
    from eth_account.typed_transactions.typed_transaction import TypedTransaction

    return bytes(TypedTransaction.from_dict(fields).hash())


def _hash_without_signature(raw: bytes) -> bytes:
    from eth_account.typed_transactions.typed_transaction import TypedTransaction
    from hexbytes import HexBytes

    return bytes(TypedTransaction.from_bytes(HexBytes(raw)).hash())
