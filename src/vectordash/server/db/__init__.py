"""The store: how connections are made and shared (`session.py`), what tables have in common (`base.py`)."""
