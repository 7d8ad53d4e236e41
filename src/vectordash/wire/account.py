"""The account that a token speaks for."""

from msgspec import UNSET, Struct, UnsetType


class Wallets(Struct, frozen=True, omit_defaults=True):
    """Addresses of the currencies that the user added; the others are left out."""

    bitcoin: str | UnsetType = UNSET
    ethereum: str | UnsetType = UNSET
    litecoin: str | UnsetType = UNSET


class Account(Struct, frozen=True):
    """`GET /api/account`; its fields stand at the top level, as the reference has them."""

    email: str
    email_confirmed: bool
    payment_method_added: bool
    vetted_host: bool
    wallets: Wallets
