"""The tests of commands have an operator with a data folder: `operator`, and one with a past: `busy`."""

from operating import busy, busy_data, operator, quiet_data

__all__ = ["busy", "busy_data", "operator", "quiet_data"]
