"""What the tests of drivers share."""

from renting import busy_port, keys, make_spec, other_keys, ssh_config

__all__ = ["busy_port", "keys", "make_spec", "other_keys", "ssh_config"]
