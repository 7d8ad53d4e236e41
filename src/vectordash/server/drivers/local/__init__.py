"""The driver `local`: instances as sandboxed processes of this very computer, for trying it all out.

`driver.py` is the server's side. It starts one detached program an instance (`instance.py`, an SSH server),
inside a sandbox where bubblewrap works (`sandbox.py`). The program outlives the server: afterwards the two
share nothing but a folder, a lock on a file in it (`folder.py`), and a mark in the environment of the
instance's processes (`processes.py`). What is said at the start is in `orders.py`.
"""
