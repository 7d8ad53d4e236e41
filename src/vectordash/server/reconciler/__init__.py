"""The reconciler: makes what is there become what is desired, one idempotent step at a time.

`step.py` decides (pure), `instance.py` does it for one instance, `machine.py` looks at a whole cluster,
`loop.py` says who is due.
"""
