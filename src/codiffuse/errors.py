"""The one exception that means "what was asked cannot be done, and here is how to mend it"."""


class InputError(ValueError):
    """A request that cannot be served: the message says what was expected, what was got, and the fix.

    The command line prints it as a single line and exits with a non-zero code; every other exception is a bug and keeps
    its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # of names of files, too, which may have line breaks
