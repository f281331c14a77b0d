"""Mail: each message in its writer's own words, and what is left out of it said."""

import gzip
import mailbox
from email.message import EmailMessage
from pathlib import Path

import pytest
from test_documents import read

from small_modernbert.data import documents, mail


def words_of(folder: Path, written: str) -> str:
    """Return the text of a message that is written so."""
    (folder / "a.eml").write_text(written, encoding="utf-8")
    ((document,), _) = read(folder)
    return document.sections[0].text


@pytest.mark.parametrize("name", ["mails.mbox", "2024-January.txt"])
def test_a_mailbox_is_a_document_a_message(tmp_path: Path, name: str) -> None:
    """Subjects lose their Re:, bodies lose what they quote and their signature."""
    box = mailbox.mbox(tmp_path / name)
    for subject, body in (
        ("[list] Re: Größe der Datei", "> old\nIt is too large.\n-- \nMe\n"),
        ("Second", "Another one.\n"),
    ):
        message = EmailMessage()
        message["Subject"], message["From"] = subject, "a@example.org"
        message.set_content(body)
        box.add(mailbox.mboxMessage(message))
    box.close()
    (first, second), _ = read(tmp_path)
    assert (first.title, first.sections[0].text) == ("Größe der Datei", "It is too large.")
    assert second.name == f"{name}#2"


def test_a_mail_without_what_it_answers(tmp_path: Path) -> None:
    """The line that names who is quoted goes with the quote, also where it is two lines long."""
    (tmp_path / "a.eml").write_text(
        "Subject: Re: Bridge\n\nHello,\nOn Fri, 25 Jun 2010 22:46:38 +0100\nAnn Doe <a@b.example> "
        "wrote:\n\n> Is it open?\n>> Who knows.\n\nIt is. Bob wrote: so.\n--\nTo unsubscribe, do.\n"
    )
    ((document,), _) = read(tmp_path)
    assert document.sections[0].text.split("\n") == ["Hello,", "", "", "It is. Bob wrote: so."]


def test_a_maildir_is_read(tmp_path: Path) -> None:
    """Its messages have no endings; what else stands there is left alone."""
    (tmp_path / "cur").mkdir()
    (tmp_path / "cur" / "1258.host:2,S").write_text("Subject: Bridge\n\nIt is open.\n")
    (tmp_path / "cur" / "a.png").write_bytes(b"\x89PNG")
    ((document,), counts) = read(tmp_path)
    assert (document.title, document.sections[0].text) == ("Bridge", "It is open.")
    assert counts == {"files of other kinds": 1}


def test_a_packed_archive_is_read_and_a_line_is_no_envelope(tmp_path: Path) -> None:
    """As pipermail keeps it; a body's line that begins with From does not cut the message."""
    (tmp_path / "2024-January.txt.gz").write_bytes(
        gzip.compress(
            b"From ann at example.org  Mon Jan  1 10:00:00 2024\nSubject: Hills\n\nAbove.\n\n"
            b"From the hill you see it.\n>From the sea, too.\n\n"
            b"From bob at example.org  Mon Jan  1 11:00:00 2024\nSubject: Sea\n\nYes.\n"
        )
    )
    (first, second), _ = read(tmp_path)
    assert first.sections[0].text == "Above.\n\nFrom the hill you see it.\nFrom the sea, too."
    assert (second.title, second.sections[0].text) == ("Sea", "Yes.")


def test_answers_know_their_thread(tmp_path: Path) -> None:
    """What refers to a message first of all belongs to it, under any subject."""
    (tmp_path / "a.mbox").write_text(
        "From a\nMessage-ID: <1@x>\nSubject: Bridge\n\nIs it open?\n\n"
        "From b\nMessage-ID: <2@x>\nReferences: <1@x>\nSubject: Re: Bridge\n\nYes.\n\n"
        "From c\nMessage-ID: <3@x>\nReferences: <1@x>\n <2@x>\nSubject: Tunnel\n\nNo.\n\n"
        "From d\nSubject: Re: Bridge\n\nWho knows.\n"
    )
    read_back, _ = read(tmp_path)
    assert [document.thread for document in read_back] == ["<1@x>", "<1@x>", "<1@x>", ""]


@pytest.mark.parametrize(
    "below",
    [
        "-----Original Message-----\nFrom: Ann\nSent: Monday\nTo: Bob\n\nIs it open?",
        "________________________________\nVon: Ann\nGesendet: Montag\nAn: Bob\n\nIst es offen?",
        "-- \nAnn, of the bridge",
        "_______________________________________________\nBridge mailing list\nhttp://x.example/",
        "-----BEGIN PGP SIGNATURE-----\niQEzBAEB\n-----END PGP SIGNATURE-----",
        "begin 644 bridge.png\nM1F]O\n`\nend",
        "---\n bridge.c | 2 +-\n\ndiff --git a/bridge.c b/bridge.c\n@@ -1 +1 @@\n-a\n+b",
        "Index: bridge.c\n=====\n--- bridge.c\n+++ bridge.c",
        "Signed-off-by: Ann <ann@example.org>\nAcked-by: Bob <bob@example.org>",
    ],
)
def test_what_is_not_the_writers_goes(tmp_path: Path, below: str) -> None:
    """Copies of other messages, signatures, footers, files in the text, diffs."""
    assert words_of(tmp_path, f"Subject: Bridge\n\nIt is open.\n\n{below}\n") == "It is open."


def test_what_somebody_passes_on_stays(tmp_path: Path) -> None:
    """A copy with nothing above it is what the message says."""
    copied = "-----Original Message-----\nFrom: Ann\n\nIs it open?"
    assert words_of(tmp_path, f"Subject: Fwd: Bridge\n\n{copied}\n").endswith("Is it open?")


def test_a_patch_without_a_word_is_its_subject(tmp_path: Path) -> None:
    """Nothing else says in words what it does."""
    (tmp_path / "a.eml").write_text(
        "Subject: [PATCH 1/2] Mend the bridge\n\nSigned-off-by: Ann <a@x>\n---\n b.c | 1 +\n"
    )
    ((document,), counts) = read(tmp_path)
    assert (document.title, document.sections[0].text) == ("", "Mend the bridge")
    assert counts == {mail.DIFFS: 1}


def test_a_plain_digest_is_its_messages(tmp_path: Path) -> None:
    """Each has its own subject and words; the list of topics above them is none."""
    rule = "-" * 30
    first = "Message: 1\nDate: Mon\nFrom: Ann <a@x>\nSubject: [b] Hills\n\nHigh, über all."
    second = "Message: 2\nDate: Mon\nFrom: Bob <b@x>\nSubject: Re: Sea\n\n> deep?\nDeep.\n-- \nB"
    topics, end = "Today's Topics:\n   1. Hills\n   2. Sea\n", "End of Digest, Vol 1\n"
    (tmp_path / "a.eml").write_text(
        f"Subject: Digest, Vol 1\n\n{topics}\n{rule * 2}\n\n{first}\n\n{rule}\n\n{second}\n\n"
        f"{rule}\n\n{end}",
        encoding="utf-8",
    )
    read_back, _ = read(tmp_path)
    assert [(each.title, each.sections[0].text) for each in read_back] == [
        ("Hills", "High, über all."), ("Sea", "Deep."),
    ]  # fmt: skip


def test_parts_attachments_and_messages_within(tmp_path: Path) -> None:
    """All text of a message is read, its attachments are counted, what it forwards is one more."""
    inner, message = EmailMessage(), EmailMessage()
    inner["Subject"] = "Inner"
    inner.set_content("Of the hill.")
    message["Subject"] = "=?utf-8?b?R3LDtsOfZQ==?="
    message.set_content("Grün.", cte="base64")
    message.add_attachment(b"GIF", maintype="image", subtype="gif", filename="a.gif")
    message.add_attachment("a,b\n", filename="a.csv")
    message.add_attachment(inner)
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    (outer, within), counts = read(tmp_path)
    assert (outer.title, outer.sections[0].text) == ("Größe", "Grün.")
    assert (within.title, within.sections[0].text) == ("Inner", "Of the hill.")
    assert counts == {mail.ATTACHMENTS: 2}


def test_html_alone_is_read_where_a_reader_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes go; beside plain text the page is not asked; without a reader it is counted."""
    monkeypatch.setattr(documents, "_html_text", lambda page: f"| Read. |\n|---|\n> {page}")
    message = EmailMessage()
    message["Subject"] = "Page"
    message.set_content("<p>Words</p>", subtype="html")
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    ((document,), counts) = read(tmp_path)
    assert (document.sections[0].text, counts) == ("Read.", {})
    monkeypatch.setattr(documents, "can_convert", lambda: False)
    assert read(tmp_path) == ([], {mail.UNCONVERTED: 1, "documents without text": 1})
    both = EmailMessage()
    both.set_content("Plain.")
    both.add_alternative("<p>Words</p>", subtype="html")
    (tmp_path / "a.eml").write_bytes(both.as_bytes())
    ((document,), counts) = read(tmp_path)
    assert (document.sections[0].text, counts) == ("Plain.", {})


def test_a_message_that_cannot_be_parsed_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its mailbox are read."""
    (tmp_path / "a.mbox").write_text("From a\nSubject: A\n\nBad.\n\nFrom b\nSubject: B\n\nGood.\n")
    parse = mail.Reader._parse

    def fail(reader: mail.Reader, message: EmailMessage) -> object:
        if message["Subject"] == "A":
            raise TypeError("made")
        return parse(reader, message)

    monkeypatch.setattr(mail.Reader, "_parse", fail)
    ((document,), counts) = read(tmp_path)
    assert (document.title, counts) == ("B", {mail.UNREAD: 1})
