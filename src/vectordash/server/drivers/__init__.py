"""Drivers: where instances run, behind one small protocol (`base.py`)."""
