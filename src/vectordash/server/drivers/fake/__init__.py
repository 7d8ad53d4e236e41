"""The fake cluster: in memory (`driver.py`), or served to several processes by one of its own (`served.py`).

It ships with the server: for tests, benches and simulations. As a process of its own it is started by
`python -m vectordash.server.drivers.fake SOCKET`; there a share of the calls goes wrong by chance
(`chance.py`). What goes over the socket is in `wire.py`.
"""

from vectordash.server.drivers.fake.driver import Call, FakeDriver, FakeInstance, Fault, simple_machine

__all__ = ["Call", "FakeDriver", "FakeInstance", "Fault", "simple_machine"]
