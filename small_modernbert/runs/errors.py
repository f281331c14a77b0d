"""The one error that is meant for the person at the shell."""


class UserError(Exception):
    """Something the user can cure: the message says what is wrong, where, and with which command.

    Scripts print it on one line and exit with 1; a traceback would only hide the cure.
    """
