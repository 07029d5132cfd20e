"""The errors that commands turn into exit codes."""


class InputError(Exception):
    """Something the user can mend: a file, an option, a model. Exit code 2, one line, no traceback.

    The message says what is wrong, with which file, and what to do next. details: lines that are shown below
    it, such as a table to choose from.
    """

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return f"{self.message}\n{self.details}" if self.details else self.message


class Cancelled(Exception):
    """The user stopped the work; what was finished is kept. Exit code 3."""
