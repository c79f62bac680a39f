"""Whose usage the Usage page shows: the visitor's own, or that of an organization that the visitor manages."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from api.billing import queries
from api.http.dependencies import Services, Session
from db.billing.accounts import ManagedAccount
from domain.billing.accounts import AccountKind
from domain.billing.reports import UsagePeriod
from domain.errors import AccountNotFound


@dataclass(frozen=True, slots=True)
class ChosenAccount:
    """The account that is shown, of those that the visitor manages."""

    chosen: ManagedAccount
    managed: list[ManagedAccount]
    own_id: str

    @property
    def is_own(self) -> bool:
        """The visitor's own account, which is shown unless another one is asked for."""
        return self.chosen.id == self.own_id

    @property
    def is_organization(self) -> bool:
        """Several people spend its credits."""
        return self.chosen.kind is AccountKind.ORGANIZATION

    @property
    def title(self) -> str:
        """What the visitor knows it by."""
        return self.title_of(self.chosen)

    def title_of(self, account: ManagedAccount) -> str:
        """What the visitor knows an account by."""
        return "Your own account" if account.id == self.own_id else account.name or account.id

    def query(self, period: UsagePeriod) -> str:
        """The account and a period as a query string."""
        asked = {} if self.is_own else {"account": self.chosen.id}
        return urlencode({**asked, "from": str(period.first), "to": str(period.last)})


async def choose_account(services: Services, owner: Session, account_id: str) -> ChosenAccount:
    """The account that is asked for. Raises `AccountNotFound` for one that the visitor does not manage."""
    wanted = account_id or owner.billing_account_id
    managed = await queries.managed_accounts(services, owner)
    found = next((account for account in managed if account.id == wanted), None)
    if found is None:
        raise AccountNotFound(f"{wanted:.80}")
    return ChosenAccount(found, managed, owner.billing_account_id)
