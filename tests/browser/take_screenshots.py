"""Pictures of the page's main states for the documents; `make screenshots`. Not part of a test run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from playwright.async_api import ViewportSize, expect

from tests.browser.conftest import OpenSite, Site
from tests.support.browser import DECLINED, Visitor

FOLDER: Final = Path(__file__).parents[2] / "docs" / "images"
DESKTOP: Final[ViewportSize] = {"width": 1100, "height": 820}
TELEPHONE: Final[ViewportSize] = {"width": 390, "height": 844}
EXPLORER: Final = "https://explorer.example/tx/{tx_hash}"


async def _save(visitor: Visitor, name: str) -> None:
    await visitor.page.evaluate("document.activeElement?.blur(); scrollTo(0, 0)")
    await visitor.page.mouse.move(0, 0)
    await visitor.page.screenshot(path=FOLDER / f"credits-{name}.png", full_page=True, animations="disabled")


async def _credited(site: Site, visitor: Visitor, dollars: str, *, purpose: str = "self") -> None:
    await visitor.pay(dollars, purpose=purpose)
    await expect(visitor.cards().first).to_contain_text("Confirming")
    await site.engine.chain.mine(5)
    await expect(visitor.cards().first).to_contain_text("Credited")


async def test_take_screenshots(open_site: OpenSite) -> None:
    async with open_site(MIN_CONFIRMATIONS="5", EXPLORER_TX_URL=EXPLORER) as site:
        visitor = await site.visitor(viewport=DESKTOP)
        await visitor.open()
        await _save(visitor, "signed-out")

        await visitor.sign_in()
        await visitor.choose("2000")
        await _save(visitor, "other-amount")
        visitor.wallet.errors["eth_sendTransaction"] = DECLINED
        await visitor.pay("50")
        await expect(visitor.says()).to_contain_text("declined")
        await _save(visitor, "declined")
        visitor.wallet.errors.clear()

        await _credited(site, visitor, "100")
        await _credited(site, visitor, "25", purpose="system")
        await visitor.pay("10")
        await expect(visitor.cards().first).to_contain_text("Confirming")
        await site.engine.chain.mine(3)
        await expect(visitor.cards().first).to_contain_text("3 of 5 confirmations")
        await _save(visitor, "confirming")
        await visitor.page.emulate_media(color_scheme="dark")
        await _save(visitor, "confirming-dark")
        await visitor.page.set_viewport_size(TELEPHONE)
        await _save(visitor, "telephone-dark")
        await visitor.page.emulate_media(color_scheme="light")
        await site.engine.chain.mine(3)
        await expect(visitor.cards().first).to_contain_text("Credited")
        await visitor.page.set_viewport_size(DESKTOP)
        await _save(visitor, "credited")

        many = await site.visitor(
            wallets=[site.wallet(), site.wallet(name="Second Wallet", rdns="example.second")], viewport=DESKTOP
        )
        await many.open()
        await many.page.get_by_role("button", name="Sign in with a wallet").click()
        await expect(many.page.get_by_role("dialog")).to_be_visible()
        await _save(many, "wallets")


if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, "-m", "pytest", "-q", __file__], check=False).returncode)
