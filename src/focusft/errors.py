"""Errors that a user can mend: each is one clear line, printed without a traceback."""


class UserError(Exception):
    """Something in the user's files, options or model that FocuSFT cannot work with.

    The message is a single line that names the file, row or option, what is wrong
    with it, and how to mend it. The command line prints it and exits with code 2.
    """


class UnsupportedModelError(UserError):
    """The model has a part that the method does not cover (see docs/troubleshooting.md)."""


class DataError(UserError):
    """A data file or one of its rows cannot be used."""


class ConfigError(UserError):
    """An option is unknown, has the wrong type, or contradicts another one."""
