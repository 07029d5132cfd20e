"""The errors that commands turn into exit codes."""


class InputError(Exception):
    """Something the user can mend: a file, an option, a model. Exit code 2, one line, no traceback.

    The message says what is wrong, with which file, and what to do next.
    """


class Cancelled(Exception):
    """The user stopped the work; what was finished is kept. Exit code 3."""
