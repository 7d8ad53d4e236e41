"""Users, API tokens, wallets, and the limits of an account."""
