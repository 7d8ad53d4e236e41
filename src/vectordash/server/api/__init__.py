"""The HTTP API: JSON routes, one file a noun, under the rules that hold for every answer.

A request passes `middleware.py` (outermost, raw ASGI), the guards of `auth.py`, `request.py` (the body),
a handler in the noun's file, a service, and where something is refused, `errors.py`.
"""
