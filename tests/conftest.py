"""What all tests share.

`needs.py`: programs of the system; `cloud.py`: a whole cloud in one process, on a fake cluster;
`server.py`: the real server as a process of its own.
"""

pytest_plugins = ("needs", "cloud", "server")
