"""The web reader against a real server: what changed is a record, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cityward import TransientError
from collectors.readers import Batch, poll
from collectors.readers.poll import HttpPoll


class Server:
    """Answers what it is told, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.status, self.body, self.headers = 200, b"", {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *words: object) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/feed"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def ask(reader: HttpPoll, place: object = None) -> Batch:
    """One question."""
    reader._due_s = 0.0
    batches = reader.read(place, threading.Event())
    found = next(batches)
    batches.close()
    return found


def test_an_answer_is_a_record_and_an_unchanged_one_is_none(server):
    server.body, server.headers = b"<level>2.41</level>", {"ETag": '"v1"'}
    reader = HttpPoll(server.url, "gauge")

    first = ask(reader)
    server.status, server.body = 304, b""
    second = ask(reader, first.place)

    assert [record.data for record in first.records] == [b"<level>2.41</level>"]
    assert server.asked[1]["if-none-match"] == '"v1"'
    assert list(second.records) == []
    assert second.place == first.place


def test_a_server_without_marks_gives_the_same_answer_once(server):
    server.body = b"same"
    reader = HttpPoll(server.url, "gauge")
    first = ask(reader)

    again = ask(reader, first.place)
    server.body = b"other"
    changed = ask(reader, again.place)

    assert list(again.records) == []
    assert [(one.data, one.place) for one in changed.records] == [(b"other", 1)]


def test_the_lines_of_an_answer_are_a_batch(server):
    server.body = b'{"a": 1}\n\n{"a": 2}\r\n'

    found = ask(HttpPoll(server.url, "gauge", "lines"))

    assert [(one.data, one.place) for one in found.records] == [(b'{"a": 1}', 0), (b'{"a": 2}', 1)]


def test_a_reader_that_starts_again_goes_on_from_its_place(server):
    server.body, server.headers = b"one", {"Last-Modified": "Sat, 28 Nov 2026 10:00:00 GMT"}
    place = ask(HttpPoll(server.url, "gauge")).place

    ask(HttpPoll(server.url, "gauge"), place)

    assert server.asked[1]["if-modified-since"] == "Sat, 28 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize("status", [301, 401, 404, 500, 503])
def test_a_refusal_is_said_and_asked_again_after_a_growing_while(server, status):
    server.status = status
    server.headers = {"Location": "http://192.0.2.9/"} if status == 301 else {}
    reader = HttpPoll(server.url, "gauge", every_s=10.0)

    with pytest.raises(TransientError, match=rf"(?s){status}.*asked again in 10 s"):
        ask(reader)
    with pytest.raises(TransientError, match="asked again in 20 s"):
        ask(reader)

    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("wish", "waits"), [("120", "120 s"), ("999999999", "3600 s"), ("soon", "1 s"), ("²", "1 s")]
)
def test_a_server_may_say_when_to_come_again(server, wish, waits):
    server.status, server.headers = 429, {"Retry-After": wish.encode("utf-8").decode("latin-1")}

    with pytest.raises(TransientError, match=f"again in {waits}"):
        ask(HttpPoll(server.url, "gauge", every_s=1.0))


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(TransientError, match="ConnectError"):
        ask(HttpPoll("http://127.0.0.1:9/", "gauge"))


def test_an_answer_without_end_is_rejected_and_counted(server, monkeypatch):
    monkeypatch.setattr(poll, "BODY_MAX_BYTES", 1_000)
    server.body = b"x" * 5_000

    found = ask(HttpPoll(server.url, "gauge"))

    assert list(found.records) == []
    assert found.rejected == {"too_long": 1}


def test_credentials_are_sent_with_each_question(server):
    ask(HttpPoll(server.url, "gauge", headers={"Authorization": "Bearer x"}))

    assert server.asked[0]["authorization"] == "Bearer x"


def test_a_reader_is_stopped_while_it_waits(server):
    server.body = b"x"
    stop = threading.Event()
    reader = HttpPoll(server.url, "gauge")

    found = []
    for batch in reader.read(None, stop):
        found.append(batch)
        if len(found) == 3:
            stop.set()

    assert [len(batch.records) for batch in found] == [1, 0, 0]


def test_an_etag_that_cannot_be_sent_back_is_left_out(server):
    server.headers, server.body = {"ETag": '"\xe9"'}, b"a"
    reader = HttpPoll(server.url, "feed")
    first = ask(reader)

    again = ask(reader, first.place)

    assert (len(first.records), len(again.records)) == (1, 0)


@pytest.mark.parametrize(
    "wish", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "9" * 400, "\u0661", "-1", "nan"]
)
def test_a_wish_that_is_none_is_answered_by_the_usual_pause(server, wish):
    server.status, server.headers = 503, {"Retry-After": wish.encode().decode("latin-1")}

    with pytest.raises(TransientError, match="503"):
        ask(HttpPoll(server.url, "feed"))


def test_a_key_in_the_address_is_not_logged(server):
    server.status = 403
    url = server.url.replace("//", "//me:secret@") + "?key=secret"

    with pytest.raises(TransientError) as caught:
        ask(HttpPoll(url, "feed"))

    assert "secret" not in str(caught.value)


def test_an_answer_that_never_ends_is_given_up(server, monkeypatch):
    monkeypatch.setattr(poll, "ANSWER_S", -1.0)
    server.body = b"a"

    with pytest.raises(TransientError, match="does not end"):
        ask(HttpPoll(server.url, "feed"))
