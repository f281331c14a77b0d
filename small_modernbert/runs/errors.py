"""The one error that is meant for the person at the shell, and what stands behind any other."""

from collections.abc import Iterator


class UserError(Exception):
    """Something the user can cure: the message says what is wrong, where, and with which command.

    Scripts print it on one line and exit with 1; a traceback would only hide the cure.
    """


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what caused it or was being handled when it came, each once."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
