"""What people wrote to each other, out of mailboxes: each message's own words, and its subject.

Left out is what stands elsewhere or is nobody's: what a message quotes, signatures, the footers of
lists, attachments, and the diffs of patches. A message that holds others (a digest, one that
forwards) gives these, too.
"""

import dataclasses
import email
import email.policy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import IO

from small_modernbert.data.asset_writing import clean_text
from small_modernbert.data.row_formats import open_bytes

ATTACHMENTS, DIFFS = "attachments left out", "diffs left out of messages"
UNREAD = "messages that could not be read"
UNCONVERTED = "messages in HTML, whose reader is not installed"
# What the email package raises on headers and character sets that it cannot parse.
BROKEN = (LookupError, ValueError, TypeError, AttributeError, RecursionError)
LONGEST_FOOTER = 1_000  # characters below the last long rule
_ENVELOPE = re.compile(rb"From \S.*\r?\n")
_HEADER = re.compile(rb"[A-Za-z][A-Za-z0-9-]*:")
_MAILDIR_HEADER = re.compile(rb"[A-Za-z][A-Za-z-]*:[ \t]?\S")
_SIGNS = re.compile(r"application/(?:pgp|(?:x-)?pkcs7)-signature")
_REPLY = re.compile(r"^((re|aw|sv|antw|fwd?|wg|tr)(\[\d+\])?\s*:\s*|\[[^\]]*\]\s*)+", re.I)
_QUOTED = re.compile(r"[ \t]*[>|]")
# "On Tue, 3 Aug 2010, Ann wrote:", which may be two lines long, above what it quotes.
_ATTRIBUTION = re.compile(
    r"^(?!\s*>)(?:.{1,100}\n(?!\s*>))?.{0,100}\b(?:wrote|writes|schrieb|écrit|escribió)\b.{0,60}:"
    r"[ \t]*\n\s*(?=>)|^Excerpts from .+ message of .+:\n\s*(?=>)",
    re.MULTILINE,
)
# Where no line is marked, all below is quoted: a rule with words, or a block of headers.
_COPIED = re.compile(
    r"^-{2,} ?(?:Original[ -]Message|Original-Nachricht|Ursprüngliche Nachricht|Message d'origine"
    r"|Mensaje original) ?-{2,}$"
    r"|^(?:_{10,}\n+)?\*?(?:From|Von|De):\*? .+\n"
    r"(?:\*?(?:Sent|Gesendet|Envoyé|Enviado|Date|Datum|To|An|À|Para|Cc|Subject|Betreff|Objet|Asunto)"
    r" ?:\*? ?.*\n){2,}",
    re.MULTILINE | re.IGNORECASE,
)
_SIGNATURE = re.compile(r"^--[ \t]?$", re.MULTILINE)
_RULE = re.compile(r"^(?:_{20,}|-{20,}|={20,})$", re.MULTILINE)
_LIST = re.compile(
    r"mailing list|unsubscribe|https?://\S*(?:list|sourceforge)|End of .*Digest", re.I
)
_ARMOUR = re.compile(
    r"^-----BEGIN PGP SIGNED MESSAGE-----\n(?:\w+: .*\n)*"
    r"|^-----BEGIN PGP SIGNATURE-----\n[\s\S]*?(?:^-----END PGP SIGNATURE-----$|\Z)"
    r"|^begin \d{3} \S.*\n(?:[ -`]{1,61}\n)*end$",
    re.MULTILINE,
)
# Of git: who signed it, and its own line of who wrote it.
_TRAILER = re.compile(r"\AFrom: .+$|^[A-Z]\w+(?:-\w+)*-by: .+$|^Change-Id: .+$", re.MULTILINE)
_DIFF = re.compile(
    r"^(?:---\n+(?: .+\|.+(?:\n|\Z))+|diff (?:-\S+ )+\S|Index: .+\n={3,}$|--- \S.*\n\+\+\+ \S)",
    re.MULTILINE,
)
# The messages of a plain digest (RFC 1153): a rule, then headers.
_DIGESTED = re.compile(
    r"^-{28,}\n+(?:Message: \d+\n)?(?="
    r"(?:(?:Date|From|Subject|To|Cc|Message-ID|Content-[\w-]+): .*\n"
    r"(?:[ \t]+.*\n)*){2,}\n)",
    re.MULTILINE | re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Message:
    """What one message says.

    Attributes:
        subject: without "Re:" and the list's name; empty where it has none.
        text: in its writer's words.
        thread: the same for all answers to one message; empty where nothing says so.
    """

    subject: str
    text: str
    thread: str


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads messages.

    Attributes:
        counts: what is left out is added to it, by reason.
        from_html: returns the text of a page; None where no reader of HTML is installed.
    """

    counts: Counter[str]
    from_html: Callable[[str], str] | None

    def read_file(self, file: Path) -> Iterator[Message]:
        """Yield the message of a file, and those that it holds."""
        with open_bytes(file) as stream:
            yield from self._messages(stream.read())

    def read_mailbox(self, file: Path) -> Iterator[Message]:
        """Yield the messages of a mailbox, one after the other."""
        with open_bytes(file) as stream:
            for raw in split_mailbox(stream):
                yield from self._messages(raw)

    def _messages(self, raw: bytes) -> Iterator[Message]:
        try:
            yield from self._parse(email.message_from_bytes(raw, policy=email.policy.default))
        except BROKEN:
            self.counts[UNREAD] += 1

    def _parse(self, message: EmailMessage) -> Iterator[Message]:
        inner: list[EmailMessage] = []
        text = "\n\n".join(filter(None, self._texts(message, inner)))
        _, *digested = _DIGESTED.split(text)
        if not digested:
            yield self._message(message, text)
        for part in digested:
            above, _, below = part.partition("\n\n")
            head = email.message_from_string(above, policy=email.policy.default)
            body = _RULE.split(_unquoted(below, _QUOTED))[0]
            yield self._message(head, body)
        for part in inner:
            yield from self._parse(part)

    def _texts(self, part: EmailMessage, inner: list[EmailMessage]) -> Iterator[str]:
        """Yield the texts of a part, without what they quote; messages in it go to `inner`."""
        kind = part.get_content_type()
        if kind == "message/rfc822":
            inner += part.iter_parts()
        elif kind == "multipart/alternative":
            texts = {each.get_content_type(): each for each in part.iter_parts()}
            order = sorted(texts, key=lambda name: name != "text/plain")
            for name in order:
                if text := "\n\n".join(filter(None, self._texts(texts[name], inner))):
                    yield text
                    break
        elif part.is_multipart():
            for each in part.iter_parts():
                yield from self._texts(each, inner)
        elif kind not in ("text/plain", "text/html") or part.get_filename():
            if not _SIGNS.match(kind):
                self.counts[ATTACHMENTS] += 1
        elif kind == "text/plain":
            yield _unquoted(_content(part), _QUOTED)
        elif self.from_html is None:
            self.counts[UNCONVERTED] += 1
        elif html := _content(part).strip():
            # Of a page's layout the cells remain.
            lines = (line.strip(" |") for line in self.from_html(html).split("\n"))
            kept = "\n".join(line for line in lines if line.strip("-: |") or not line)
            yield _unquoted(kept, re.compile(r"[ \t]*>"))

    def _message(self, head: EmailMessage, text: str) -> Message:
        """Return a message of its headers and its text, less what is no prose."""
        subject = _subject(head)
        diff = _DIFF.search(text)
        words = clean_text(_TRAILER.sub("", text[: diff.start()] if diff else text))
        if diff:
            self.counts[DIFFS] += 1
            if not words:  # its subject is all that is said
                subject, words = "", subject
        return Message(subject, words, _thread(head))


def is_mailbox(file: Path) -> bool:
    """Say whether a file begins as a mailbox does: an envelope, and a header below it."""
    with open_bytes(file) as stream:
        first, second = stream.readline(2_000), stream.readline(2_000)
    return bool(_ENVELOPE.match(first) and _HEADER.match(second))


def is_message(file: Path) -> bool:
    """Say whether a file is a message of a maildir, where they have no endings."""
    if file.parent.name not in ("cur", "new"):
        return False
    try:
        with file.open("rb") as stream:
            return _MAILDIR_HEADER.match(stream.read(200)) is not None
    except OSError:
        return True  # whoever reads it will say why it can't be


def split_mailbox(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the messages of a mailbox as they are written, without their envelopes.

    A line that begins with "From " is an envelope where a header stands below it: bodies have such
    lines, too, and not every program marks them (">From", which loses its mark here).
    """
    lines: list[bytes] = []
    envelope = b""  # a line that may be one, until the next line tells
    for line in stream:
        if envelope:
            if _HEADER.match(line):
                if lines:
                    yield b"".join(lines)
                lines = []
            else:
                lines.append(envelope)
            envelope = b""
        if _ENVELOPE.match(line) and not (lines and lines[-1].strip()):
            envelope = line
        elif line.startswith(b">From ") and not (lines and lines[-1].startswith(b">")):
            lines.append(line[1:])
        else:
            lines.append(line)
    lines.append(envelope)
    if any(line.strip() for line in lines):
        yield b"".join(lines)


def _unquoted(text: str, quoted: re.Pattern[str]) -> str:
    """Return a part's text without quotes, signature and footer: each stands in its own message."""
    text = _ARMOUR.sub("", text.replace("\r\n", "\n"))
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    if _DIGESTED.search(text):
        return text  # each of its messages is read by itself
    text = _SIGNATURE.split(text, maxsplit=1)[0]
    copied = _COPIED.search(text, 1)  # with nothing above it, it is what somebody passes on
    text = _ATTRIBUTION.sub("\n", text[: copied.start()] if copied else text)
    text = "\n".join(line for line in text.split("\n") if not quoted.match(line)).strip("\n")
    for rule in _RULE.finditer(text):
        if len(text) - rule.end() <= LONGEST_FOOTER and _LIST.search(text, rule.end()):
            return text[: rule.start()].rstrip()
    return text


def _content(part: EmailMessage) -> str:
    """Return a part's text in the character set that it names, or that its bytes fit."""
    written = part.get_payload(decode=True) or b""
    for name in (part.get_content_charset(), "utf-8"):
        try:
            return written.decode(name or "us-ascii")
        except (LookupError, ValueError):
            continue  # one that nobody knows, or that is not so
    return written.decode("latin-1")


def _subject(message: EmailMessage) -> str:
    return " ".join(clean_text(_REPLY.sub("", _header(message, "Subject"))).split())


def _thread(message: EmailMessage) -> str:
    """Return the id of the message that began it: the first that a reply refers to."""
    for name in ("References", "In-Reply-To", "Message-ID"):
        if identity := re.search(r"<[^<>\s]+>", _header(message, name)):
            return identity[0]
    return ""


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message[name] or "")
    except BROKEN:
        return ""  # a header that the email package cannot parse
