"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Bad input: one line that names the setting, its value, what is accepted and what to do.

    The command line prints it as `error: ...` and exits with code 2, without a traceback.
    """
