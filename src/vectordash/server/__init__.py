"""The control plane: everything behind the HTTP API, and the program `vdserver`."""
