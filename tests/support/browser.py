"""A real browser with injected wallets that sign on the local chain, and everything a page must not do, noticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from eth_account import Account
from eth_account.messages import encode_defunct
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    ViewportSize,
    async_playwright,
    expect,
)

from devstack.browser import NO_BROWSER, find_browser
from devstack.chain import LocalChain, Wallet
from devstack.errors import ChainCallError

PATIENCE_MS: Final = 15_000
"""Conditions come true in a moment; a shared machine may take longer."""

DECLINED: Final = (4001, "User rejected the request.")
PENDING: Final = (-32002, "Request of this type is already pending.")
UNKNOWN_CHAIN: Final = (4902, "Unrecognized chain ID.")

SMALL_TELEPHONE: Final[ViewportSize] = {"width": 360, "height": 640}
AXE: Final = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"

FOREIGN_CHAIN_ID: Final = 1
ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Crect width='8' height='8' fill='%23e2761b'/%3E%3C/svg%3E"
)

# What an extension puts into every page before the page's own scripts (EIP-6963): the wallet itself is in Python.
PROVIDERS: Final = """
(wallets) => {
  addEventListener('securitypolicyviolation', (event) =>
    console.error(`content policy: ${event.violatedDirective} ${event.blockedURI}`));
  const injected = wallets.map(({ number, name, rdns, icon, isOld }) => {
    const listeners = {};
    const provider = {
      on: (event, listener) => (listeners[event] ??= []).push(listener),
      request: async ({ method, params }) => {
        const { result, error } = await walletRequest(number, method, params ?? []);
        if (error) throw Object.assign(new Error(error[1]), { code: error[0] });
        return result;
      },
    };
    const info = { uuid: `00000000-0000-4000-8000-00000000000${number}`, name, rdns, icon };
    const announce = () => dispatchEvent(
      new CustomEvent('eip6963:announceProvider', { detail: Object.freeze({ info, provider }) }));
    if (isOld) window.ethereum = provider;
    else { addEventListener('eip6963:requestProvider', announce); announce(); }
    return (event, value) => (listeners[event] ?? []).forEach((listener) => listener(value));
  });
  Object.defineProperty(window, 'walletEvent', {
    value: (number, event, value) => injected[number](event, value) });
}
"""


@dataclass
class InjectedWallet:
    """A browser extension: its accounts, the chain that it is on, and what it does when it is asked."""

    chain: LocalChain
    account: Wallet
    name: str = "Test Wallet"
    rdns: str = "example.wallet"
    icon: str = ICON
    is_old: bool = False
    chain_id: int = 0
    known_chain_ids: set[int] = field(default_factory=set)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By method: what it answers instead, until it is taken away."""

    results: dict[str, Any] = field(default_factory=dict)
    """By method: what it answers instead, as if all were well."""

    held: dict[str, asyncio.Event] = field(default_factory=dict)
    """By method: it does what it is asked, and answers when the event is set."""

    calls: list[tuple[str, list[Any]]] = field(default_factory=list)
    ignores_switching: bool = False
    sent: list[str] = field(default_factory=list)
    """Hashes of its transactions."""

    def __post_init__(self) -> None:
        self.chain_id = self.chain_id or self.chain.chain_id
        self.known_chain_ids |= {self.chain_id, self.chain.chain_id}

    def times(self, method: str) -> int:
        """How often it was asked for something."""
        return sum(1 for name, _ in self.calls if name == method)

    async def answer(self, method: str, params: list[Any]) -> dict[str, Any]:
        """One request of a page."""
        self.calls.append((method, params))
        if method in self.errors:
            return {"error": self.errors[method]}
        try:
            result = self.results[method] if method in self.results else await self._do(method, params)
        except KeyError:
            return {"error": UNKNOWN_CHAIN}
        except ChainCallError as error:
            return {"error": (-32000, error.message)}
        if method in self.held:
            await self.held[method].wait()
        return {"result": result}

    async def _do(self, method: str, params: list[Any]) -> Any:
        match method:
            case "eth_accounts" | "eth_requestAccounts":
                # As wallets do: not in checksum form.
                return [self.account.address.lower()]
            case "eth_chainId":
                return hex(self.chain_id)
            case "wallet_switchEthereumChain":
                wanted = int(params[0]["chainId"], 16)
                if wanted not in self.known_chain_ids:
                    raise KeyError(wanted)
                if not self.ignores_switching:
                    self.chain_id = wanted
                return None
            case "wallet_addEthereumChain":
                self.known_chain_ids.add(int(params[0]["chainId"], 16))
                return None
            case "personal_sign":
                message = bytes.fromhex(params[0].removeprefix("0x"))
                signed = Account.sign_message(encode_defunct(message), self.account.private_key)
                return "0x" + bytes(signed.signature).hex()
            case "eth_signTypedData_v4":
                # As wallets do: the chain of what is signed has to be the one that they are on.
                typed = json.loads(params[1])
                assert params[0].lower() == self.account.address.lower() == typed["message"]["from"].lower()
                assert int(typed["domain"]["chainId"]) == self.chain_id
                signed = Account.sign_typed_data(self.account.private_key, full_message=typed)
                return "0x" + bytes(signed.signature).hex()
            case "eth_sendTransaction":
                wanted = params[0]
                assert wanted["from"].lower() == self.account.address.lower()
                assert int(wanted["chainId"], 16) == self.chain_id == self.chain.chain_id
                self.sent.append(await self.chain.send(self.account.private_key, wanted["to"], wanted["data"]))
                return self.sent[-1]
            case "eth_call" | "eth_getBalance":
                return await self.chain.rpc(method, *params)
        raise AssertionError(f"no wallet is asked for {method}")


@dataclass
class Visitor:
    """A visitor with their own browser. Whatever their pages must not do is in `complaints`."""

    url: str
    context: BrowserContext
    page: Page
    wallets: Sequence[InjectedWallet]
    complaints: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    """Words of complaints that a test brings about on purpose."""

    @property
    def wallet(self) -> InjectedWallet:
        """The first one."""
        return self.wallets[0]

    async def open(self, path: str = "/credits", *, page: Page | None = None) -> Page:
        """Go to a page of the site, by default in the first tab."""
        shown = page or self.page
        await shown.goto(self.url + path)
        return shown

    async def open_another_tab(self) -> Page:
        """The same page once more."""
        return await self.open(page=await self.context.new_page())

    async def sign_in(self) -> None:
        """Open the page and sign in."""
        await self.open()
        await self.page.get_by_role("button", name="Sign in with a wallet").click()
        await expect(self.page.get_by_role("heading", name="Your balance")).to_be_visible()

    def hold(self, method: str) -> asyncio.Event:
        """The first wallet does what it is asked, and answers when the event is set."""
        return self.wallet.held.setdefault(method, asyncio.Event())

    async def emit(self, event: str, value: Any) -> None:
        """An event of the first wallet, in every tab."""
        for page in self.context.pages:
            await page.evaluate("([event, value]) => walletEvent(0, event, value)", [event, value])

    async def use_account(self, account: Wallet) -> None:
        """Switch the first wallet to another account, as its own window does."""
        self.wallet.account = account
        await self.emit("accountsChanged", [account.address.lower()])

    def form(self, purpose: str = "self", *, page: Page | None = None) -> Locator:
        """One of the two ways to pay."""
        return (page or self.page).locator(f"form.pay[data-purpose={purpose}]")

    async def choose(self, dollars: str, *, purpose: str = "self") -> Locator:
        """Choose an amount; the button that pays it."""
        form = self.form(purpose)
        preset = form.get_by_role("radio", name=f"${dollars}", exact=True)
        if await preset.count():
            await preset.check()
        else:
            await form.get_by_role("radio", name="Other", exact=True).check()
            await form.get_by_label("Other amount in US dollars").fill(dollars)
        return form.get_by_role("button")

    async def pay(self, dollars: str, *, purpose: str = "self") -> None:
        """Choose an amount and press the button."""
        await (await self.choose(dollars, purpose=purpose)).click()

    def cards(self, *, page: Page | None = None) -> Locator:
        """The listed payments, the newest first."""
        return (page or self.page).locator(".payment")

    def says(self, purpose: str = "self") -> Locator:
        """What a form says."""
        return self.form(purpose).locator(".says")

    def notices(self, *, page: Page | None = None) -> Locator:
        """What is said above the page."""
        return (page or self.page).locator("#notices")

    async def barriers(self) -> list[tuple[str, list[str]]]:
        """What axe finds on the page as it is now: rules, and what breaks them.

        It is an eval away from the content policy: the context needs `bypass_csp`.
        """
        await self.page.add_script_tag(path=AXE)
        found = await self.page.evaluate("axe.run({ resultTypes: ['violations'] })")
        assert found["passes"], "nothing was checked"
        return [(violation["id"], [node["html"] for node in violation["nodes"]]) for violation in found["violations"]]

    async def widths(self) -> list[int]:
        """Of what is on the page, and of what is seen of it: if the first is more, the page scrolls sideways."""
        root = "document.documentElement"
        found: list[int] = await self.page.evaluate(f"[{root}.scrollWidth, {root}.clientWidth]")
        return found

    def _complain(self, words: str) -> None:
        if not any(allowed in words for allowed in self.allowed):
            self.complaints.append(words)

    def _watch(self) -> None:
        def on_console(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                self._complain(f"console {message.type}: {message.text}")

        def on_request(request: Request) -> None:
            if not request.url.startswith((self.url + "/", "data:")):
                self._complain(f"request to another origin: {request.url}")

        self.context.on("console", on_console)
        self.context.on("weberror", lambda error: self._complain(f"not caught: {error.error}"))
        self.context.on("request", on_request)


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """The machine's own Chromium, without a window."""
    executable = find_browser()
    assert executable is not None, NO_BROWSER
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visiting(
    browser: Browser, url: str, wallets: Sequence[InjectedWallet], **options: Any
) -> AsyncIterator[Visitor]:
    """A visitor with these wallets; `options` are those of Playwright's contexts."""
    # One place and language wherever the tests run: dates are written in the visitor's own.
    context = await browser.new_context(**{"locale": "en-GB", "timezone_id": "Europe/Berlin"} | options)
    context.set_default_timeout(PATIENCE_MS)
    context.set_default_navigation_timeout(PATIENCE_MS)

    async def request(number: int, method: str, params: list[Any]) -> dict[str, Any]:
        return await wallets[number].answer(method, params)

    await context.expose_function("walletRequest", request)
    described = [
        {"number": number, "name": wallet.name, "rdns": wallet.rdns, "icon": wallet.icon, "isOld": wallet.is_old}
        for number, wallet in enumerate(wallets)
    ]
    await context.add_init_script(f"({PROVIDERS})({json.dumps(described)})")
    visitor = Visitor(url, context, await context.new_page(), wallets)
    visitor._watch()
    try:
        yield visitor
    finally:
        await context.close()
