"""What an operator can mend: the base of the errors that end a command in one line instead of a traceback."""


class Trouble(Exception):
    """Something is not as it should be outside the program. The message says what, and what to do."""
