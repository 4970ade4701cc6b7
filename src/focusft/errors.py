"""Errors that a user can mend: each is one clear line, printed without a traceback."""


class UserError(Exception):
    """Something in the user's files, options or model that FocuSFT cannot work with.

    The message is a single line that names the file, row or option, what is wrong
    with it, and how to mend it. The command line prints it and exits with `exit_code`.
    """

    exit_code = 2


class UnsupportedModelError(UserError):
    """The model has a part that the method does not cover (see docs/troubleshooting.md)."""


class DataError(UserError):
    """A data file or one of its rows cannot be used."""


class ConfigError(UserError):
    """An option is unknown, has the wrong type, or contradicts another one."""


class RunInterrupted(Exception):
    """A signal ended the run; the message says where its state is and how to go on.

    Attributes:
        exit_code: 128 and the number of the signal: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def in_short(error: Exception) -> str:
    """The error's first sentence or two on one line, at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
