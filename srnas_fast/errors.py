"""The one exception for what a user can mend: a wrong argument, file or folder."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it, what is accepted and what to do.

    The command line prints it as one line and exits with status 2, without a traceback.

    >>> from srnas_fast.errors import InputError
    >>> raise InputError("patch is 0 pixels; give a whole number from 1 up")
    Traceback (most recent call last):
    ...
    srnas_fast.errors.InputError: patch is 0 pixels; give a whole number from 1 up
    """
