"""Whatever happens between the wallet's "sent" and the server's "recorded", the transaction's hash is not lost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from playwright.async_api import Dialog, Route, expect

from devstack.chain import payer_wallets
from devstack.processes import wait_until
from domain.payments.attempt import ErrorCode
from telemetry.metrics.api import EVENT_STREAMS
from tests.browser.conftest import OpenSite, Site
from tests.support.browser import PATIENCE_MS, Visitor

SUBMIT = "**/api/v1/payments/attempts/*/submit"
EVENTS = "**/api/v1/payments/attempts/*/events"
INTENTS = "**/api/v1/payments/intents"


async def _abort(route: Route) -> None:
    await route.abort()


async def _credited(site: Site, visitor: Visitor, credits: str = "250,000,000", *, payments: int = 1) -> None:
    """The last of so many payments is, and none was sent or recorded twice."""
    await expect(visitor.cards()).to_have_count(payments)
    await expect(visitor.cards().first).to_contain_text("Confirming")
    await site.engine.chain.mine(2)
    await expect(visitor.cards().first).to_contain_text("Credited")
    await expect(visitor.page.locator("#balance-credits")).to_have_text(credits)
    assert len(visitor.wallet.sent) == payments
    assert len(await site.attempt_ids()) == payments


async def _pay_without_submitting(visitor: Visitor) -> None:
    """Send a payment whose hash does not reach the server."""
    await visitor.context.route(SUBMIT, _abort)
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("The server does not respond")
    await expect(visitor.says()).to_contain_text(visitor.wallet.sent[-1])


async def test_what_a_tab_could_not_submit_the_next_one_submits_or_shows(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("ERR_FAILED")
    await _pay_without_submitting(visitor)
    await visitor.page.close()
    await visitor.context.unroute(SUBMIT)

    visitor.page = await visitor.open_another_tab()
    await _credited(site, visitor)
    # Once submitted, it is not submitted again.
    told: list[str] = []
    visitor.context.on("request", lambda request: told.append(request.url))
    await visitor.open()
    await expect(visitor.cards()).to_contain_text("Credited")
    assert not [url for url in told if url.endswith("/submit")]

    # A page that was on its way during the submission: rendered before it and shown after it, when no stored hash says
    # any more that there is something to ask for.
    await _pay_without_submitting(visitor)

    async def submitted_before_it_comes(route: Route) -> None:
        rendered = await route.fetch()
        await visitor.context.unroute(SUBMIT)
        await expect(visitor.says()).to_contain_text("It is listed under Payments")
        await route.fulfill(response=rendered)

    other = await visitor.context.new_page()
    await other.route("**/credits", submitted_before_it_comes, times=1)
    await visitor.open(page=other)
    await visitor.page.close()
    visitor.page = other
    await _credited(site, visitor, "500,000,000", payments=2)


@pytest.mark.slow
async def test_paying_again_before_the_first_is_submitted_is_a_payment_of_its_own(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("ERR_FAILED")
    await visitor.context.route(SUBMIT, _abort)
    for sent in (1, 2):
        await visitor.pay("25")
        await expect(visitor.says()).to_contain_text("The server does not respond")
        assert len(visitor.wallet.sent) == sent
        await visitor.page.close()
        visitor.page = await visitor.open_another_tab()
    await visitor.context.unroute(SUBMIT)
    await visitor.page.reload()
    await expect(visitor.page.get_by_text("Confirming")).to_have_count(2)
    await site.engine.chain.mine(2)
    await expect(visitor.page.locator("#balance-credits")).to_have_text("500,000,000")
    assert len(await site.attempt_ids()) == 2


@pytest.mark.slow
async def test_a_tab_that_is_closed_while_the_wallet_asks_does_not_pay_twice(site: Site) -> None:
    visitor = await site.signed_in()
    held = visitor.hold("eth_sendTransaction")
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Confirm 25.00 USDC")
    await visitor.page.close()
    held.set()
    del visitor.wallet.held["eth_sendTransaction"]

    visitor.page = await visitor.open_another_tab()
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("it is unknown whether it was sent")
    await visitor.page.get_by_text("Already sent it?").click()
    await visitor.page.get_by_label("Its transaction hash").fill(visitor.wallet.sent[0])
    await visitor.page.get_by_role("button", name="Send the hash").click()
    await _credited(site, visitor)
    # What is paid by now is not paid again.
    await visitor.pay("25")
    await expect(visitor.cards()).to_have_count(2)
    assert len(await site.attempt_ids()) == 2


@pytest.mark.slow
async def test_a_session_that_ends_before_the_intent_is_renewed_and_the_choice_kept(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("401")
    await visitor.context.clear_cookies()
    await visitor.pay("7.50")
    await expect(visitor.notices()).to_contain_text("Your session has ended. Sign in again")
    assert visitor.wallet.times("eth_sendTransaction") == 0
    await visitor.notices().get_by_role("button", name="Sign in again").click()
    await expect(visitor.notices()).to_be_empty()
    await expect(visitor.form().locator("output")).to_have_text("75,000,000 credits for 7.50 USDC")
    await visitor.form().get_by_role("button").click()
    await _credited(site, visitor, "75,000,000")


@pytest.mark.slow
async def test_a_session_that_ends_while_the_wallet_asks_loses_no_payment(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("401")
    held = visitor.hold("eth_sendTransaction")
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Confirm 25.00 USDC")
    await visitor.context.clear_cookies()
    held.set()
    await expect(visitor.notices()).to_contain_text("Your session has ended")
    await visitor.notices().get_by_role("button", name="Sign in again").click()
    await _credited(site, visitor)


@pytest.mark.slow
async def test_a_signed_out_page_says_that_a_payment_waits(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("ERR_FAILED")
    await visitor.context.route(SUBMIT, _abort)
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("The server does not respond")
    await visitor.page.get_by_role("button", name="Sign out").click()
    await expect(visitor.notices()).to_contain_text("A payment was sent from 0x7099…79c8. Sign in with that wallet")
    await visitor.context.unroute(SUBMIT)
    await visitor.sign_in()
    await _credited(site, visitor)


@pytest.mark.slow
async def test_signing_out_in_another_tab_while_the_wallet_asks_loses_no_payment(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("401")
    other = await visitor.open_another_tab()
    held = visitor.hold("eth_sendTransaction")
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Confirm 25.00 USDC")
    await other.get_by_role("button", name="Sign out").click()
    await expect(other.get_by_role("button", name="Sign in with a wallet")).to_be_visible()
    await expect(visitor.says()).to_contain_text("Confirm 25.00 USDC")
    held.set()
    await expect(visitor.page.get_by_role("button", name="Sign in with a wallet")).to_be_visible()
    await expect(visitor.notices()).to_contain_text("A payment was sent from 0x7099…79c8")
    await visitor.sign_in()
    await _credited(site, visitor)


async def test_the_hash_is_submitted_again_until_a_busy_or_broken_server_has_it(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed += ["429", "503"]
    answers = [(429, {"Retry-After": "1"}, '{"code": "RATE_LIMITED"}'), (503, {}, '{"code": "DATABASE_UNAVAILABLE"}')]

    async def refuse_first(route: Route) -> None:
        if not answers:
            await route.continue_()
            return
        status, headers, body = answers.pop(0)
        await route.fulfill(status=status, headers={"Content-Type": "application/problem+json", **headers}, body=body)

    await visitor.context.route(SUBMIT, refuse_first)
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("The server does not respond")
    await _credited(site, visitor)
    assert answers == []


@pytest.mark.slow
async def test_a_lost_answer_to_an_intent_brings_the_same_intent_again(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("ERR_FAILED")

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await visitor.context.route(INTENTS, lose)
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("The server cannot be reached")
    await visitor.context.unroute(INTENTS)
    await visitor.pay("25")
    await _credited(site, visitor)


@pytest.mark.slow
async def test_without_event_streams_the_page_asks(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed += ["503", "MIME"]

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503)

    await visitor.context.route(EVENTS, refuse)
    await visitor.pay("25")
    await _credited(site, visitor)


@pytest.mark.slow
async def test_a_reload_goes_on_with_the_progress(site: Site) -> None:
    visitor = await site.signed_in()
    await visitor.pay("25")
    await expect(visitor.cards()).to_contain_text("Waiting for a block")
    await visitor.page.reload()
    await site.engine.chain.mine()
    await expect(visitor.cards()).to_contain_text("1 of 2 confirmations")
    # The server knows it too: the next page begins with it.
    await visitor.page.reload()
    await expect(visitor.cards()).to_contain_text("1 of 2 confirmations")
    await _credited(site, visitor)


@pytest.mark.slow
async def test_what_is_typed_survives_what_arrives(site: Site) -> None:
    visitor = await site.signed_in()
    await site.engine.intent(1_000)
    await visitor.open()
    await visitor.page.get_by_text("Already sent it?").click()
    field = visitor.page.get_by_label("Its transaction hash")
    await visitor.pay("25")
    await expect(visitor.cards()).to_have_count(2)
    await field.fill("0x12")
    await site.engine.chain.mine(2)
    await expect(visitor.cards().first).to_contain_text("Credited")
    await expect(field).to_have_value("0x12")
    await expect(field).to_be_focused()


@pytest.mark.slow
async def test_leaving_while_the_wallet_asks_is_asked_about(site: Site) -> None:
    visitor = await site.signed_in()
    held = visitor.hold("eth_sendTransaction")
    questions: list[str] = []

    async def stay(dialog: Dialog) -> None:
        questions.append(dialog.type)
        await dialog.dismiss()

    visitor.page.on("dialog", stay)
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Confirm 25.00 USDC")
    await visitor.page.evaluate("location.assign('/credits?elsewhere')")
    await wait_until(lambda: bool(questions), timeout_seconds=PATIENCE_MS / 1000, what="a question")
    held.set()
    await _credited(site, visitor)
    assert (questions, visitor.page.url) == (["beforeunload"], f"{site.api.url}/credits")


@pytest.mark.slow
async def test_a_wallet_that_takes_longer_than_the_intent_lives_is_credited_all_the_same(open_site: OpenSite) -> None:
    async with open_site(PAYMENT_INTENT_TTL_SECONDS="1") as site:
        visitor = await site.signed_in()
        held = visitor.hold("eth_sendTransaction")
        await visitor.pay("25")
        await expect(visitor.says()).to_contain_text("Confirm 25.00 USDC")
        [late] = await site.attempt_ids()
        expires_at = (await site.engine.attempt(late)).expires_at
        assert expires_at is not None
        is_over = lambda: datetime.now(UTC) > expires_at  # noqa: E731
        await wait_until(is_over, timeout_seconds=PATIENCE_MS / 1000, what="the end of the intent")
        held.set()
        await expect(visitor.cards()).to_have_count(1)
        await site.engine.chain.mine(2)
        await expect(visitor.cards()).to_contain_text("Credited")
        assert (await site.engine.attempt(late)).error_code == ErrorCode.INTENT_EXPIRED
        assert await site.own_balance() == 250_000_000


@pytest.mark.slow
async def test_a_payment_of_another_wallet_of_this_browser_is_not_forgotten(site: Site) -> None:
    visitor = await site.signed_in()
    visitor.allowed.append("ERR_FAILED")
    await visitor.context.route(SUBMIT, _abort)
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("The server does not respond")
    await visitor.page.get_by_role("button", name="Sign out").click()
    visitor.wallet.account = payer_wallets()[1]
    await visitor.sign_in()
    await expect(visitor.notices()).to_contain_text("A payment was sent from 0x7099…79c8. Sign in with that wallet")
    await visitor.context.unroute(SUBMIT)
    await visitor.page.reload()
    await expect(visitor.page.get_by_title(payer_wallets()[1].address)).to_be_visible()
    await visitor.page.get_by_role("button", name="Sign out").click()
    visitor.wallet.account = payer_wallets()[0]
    await visitor.sign_in()
    await _credited(site, visitor)


@pytest.mark.slow
async def test_a_hidden_tab_closes_its_connection(site: Site) -> None:
    visitor = await site.signed_in()
    await visitor.pay("25")
    await expect(visitor.cards()).to_contain_text("Waiting for a block")
    await wait_until(lambda: _streams() == 1, timeout_seconds=PATIENCE_MS / 1000, what="a stream")
    hide = """(isHidden) => {
      Object.defineProperty(document, 'hidden', { configurable: true, value: isHidden });
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    await visitor.page.evaluate(hide, True)
    await wait_until(lambda: _streams() == 0, timeout_seconds=PATIENCE_MS / 1000, what="no stream")
    await visitor.page.evaluate(hide, False)
    await _credited(site, visitor)


def _streams() -> float:
    return sum(sample.value for metric in EVENT_STREAMS.collect() for sample in metric.samples)


@pytest.mark.slow
async def test_a_browser_that_keeps_nothing_any_more_still_hands_the_hash_in(site: Site) -> None:
    visitor = await site.signed_in()
    held = visitor.hold("eth_sendTransaction")
    await visitor.pay("25")
    await expect(visitor.says()).to_contain_text("Confirm 25.00 USDC")
    await visitor.page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError') } }"
    )
    held.set()
    await _credited(site, visitor)
    assert len(visitor.wallet.sent) == 1
    assert len(await site.attempt_ids()) == 1


@pytest.mark.slow
async def test_a_damaged_note_about_an_amount_does_not_block_it(site: Site) -> None:
    visitor = await site.signed_in()
    await visitor.pay("25")
    await _credited(site, visitor)
    await visitor.page.evaluate(
        "for (const purpose of ['self', 'system'])"
        " localStorage.setItem(`settle:offer:${document.querySelector('main').dataset.address.toLowerCase()}"
        ":${purpose}:1000`, '{')"
    )
    await visitor.pay("10")
    await expect(visitor.cards()).to_have_count(2)
