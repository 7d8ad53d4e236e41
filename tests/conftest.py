"""What all tests share.

`needs.py`: programs of the system; `databases.py`: SQLite and a private PostgreSQL; `cloud.py`: a whole cloud
in one process, on a fake cluster; `server.py`: the real server as a process of its own;
`soaking.py`: how long storms last.
"""

pytest_plugins = ("needs", "databases", "cloud", "server", "soaking")
