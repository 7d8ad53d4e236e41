"""What all tests share: `needs.py` (programs of the system), `cloud.py` (a whole cloud on a fake cluster)."""

pytest_plugins = ("needs", "cloud")
