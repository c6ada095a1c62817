"""The commands as a person at a shell meets them: output, exit codes, words of errors."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from cityward import TransientError
from siem import assembly, cli
from siem import config as settings_file
from siem.commands import common
from tests.programs import PATIENCE_S

CITYWARD = (sys.executable, "-m", "siem.cli")
GUESSING = "".join(
    f"2026-03-01T10:00:{second:02}+00:00 gw sshd[7]: Failed password for root from 192.0.2.7"
    f" port 4{second:03} ssh2\n"
    for second in range(8)
)
QUIET_LOG = "2026-03-01T10:00:00+00:00 gw sshd[7]: Server listening on 192.0.2.1 port 22.\n"


class Done(NamedTuple):
    """What a command printed and how it left."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, in an empty folder, with an empty home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CITYWARD_CONFIG", raising=False)

    def run_(*words: str) -> Done:
        capsys.readouterr()
        code = cli.run(words)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run_


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a node was made that has read a log in which passwords are guessed."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        patch.delenv("CITYWARD_CONFIG", raising=False)
        (folder / "auth.log").write_text(GUESSING)
        words = ("--yes", "--sector", "energy.electricity", "--source", "auth.log")
        assert cli.run(("init", "node", *words)) == 0
        assert cli.run(("ingest", "--keep", "auth.log", "-c", "node/cityward.toml")) == 0
    return folder


@pytest.fixture
def node(made: Path, tmp_path: Path) -> Path:
    """Settings file of such a node in the folder of the test."""
    shutil.copy(made / "auth.log", tmp_path)
    shutil.copytree(made / "node", tmp_path / "node")
    settings = tmp_path / "node" / "cityward.toml"
    settings.write_text(settings.read_text().replace(str(made), str(tmp_path)))
    return settings


def shell(*words: str, given: bytes = b"", cwd: Path) -> Done:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [*CITYWARD, *words],
        input=given,
        capture_output=True,
        cwd=cwd,
        timeout=PATIENCE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def capture(*payloads: bytes) -> bytes:
    """A pcap file: one TCP conversation to port 502, a frame a payload of its client."""
    file = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
    sequence = 1_000
    for number, payload in enumerate(payloads):
        tcp = struct.pack(">HHIIBBHHH", 40_000, 502, sequence, 1, 0x50, 0x18, 8_192, 0, 0)
        total = 40 + len(payload)
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, total, number, 0, 64, 6, 0, b"\xc0\0\2\1", b"\xc0\0\2\2"
        )
        frame = b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0" + ip + tcp + payload
        file += struct.pack("<IIII", 1_772_359_200 + number, 0, len(frame), len(frame)) + frame
        sequence += len(payload)
    return file


# ---- ingest


def test_a_log_is_read_and_its_findings_are_told_worst_first(run, tmp_path):
    (tmp_path / "auth.log").write_text(GUESSING)

    done = run("ingest", "auth.log", "-o", "table")

    assert done.code == 0
    assert "auth.log (syslog): 8 records, 8 events, 0 rejected" in done.err
    assert re.search(r"^medium +SSH passwords guessed from one address", done.out, re.MULTILINE)
    assert "192.0.2.7 failed to log in 8 times within 2 min" in done.out
    assert re.search(r"one address +\d+ +192\.0\.2\.7", done.out)


def test_nothing_to_report_is_said_as_such(run, tmp_path):
    (tmp_path / "auth.log").write_text(QUIET_LOG)

    done = run("ingest", "auth.log", "-o", "table")

    assert (done.code, done.out) == (0, "Nothing to report.\n")


def test_a_pipe_gets_one_finding_a_line_under_the_names_of_the_schema(run, tmp_path):
    (tmp_path / "auth.log").write_text(GUESSING)

    rows = run("ingest", "auth.log").rows

    assert [row["finding.title"] for row in rows] == ["SSH passwords guessed from one address"]
    assert rows[0]["source.ip"] == "192.0.2.7"
    assert rows[0]["threat.technique.id"] == ["T1110.001"]


def test_the_second_run_says_the_same(run, tmp_path):
    (tmp_path / "auth.log").write_text(GUESSING)

    first = run("ingest", "auth.log", "-o", "csv")

    assert run("ingest", "auth.log", "-o", "csv").out == first.out


def test_events_can_be_asked_for(run, tmp_path):
    (tmp_path / "auth.log").write_text(GUESSING)

    rows = run("ingest", "--events", "auth.log").rows

    assert [row["cw.record.number"] for row in rows] == [0] * 8
    assert {row["user.name"] for row in rows} == {"root"}


def test_standard_input_is_a_dash_also_for_a_capture(run, tmp_path):
    read = bytes.fromhex("000100000006010300000002")

    log = shell("ingest", "-", "--events", given=GUESSING.encode(), cwd=tmp_path)
    packets = shell("ingest", "-", "--events", given=capture(read), cwd=tmp_path)

    assert (log.code, len(log.rows)) == (0, 8)
    assert [row["event.dataset"] for row in packets.rows] == [
        "packets.modbus",
        "packets.flow",
    ]
    assert "stdin (packets): 1 packet, 2 events" in packets.err


def test_a_folder_is_read_file_by_file_and_what_is_of_no_kind_is_listed(run, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "auth.log").write_text(GUESSING)
    (folder / "noise.bin").write_bytes(bytes(range(256)) * 20)

    done = run("ingest", "logs", "-o", "csv")

    assert done.code == 7
    assert "not read: noise.bin is of no kind that a collector recognises" in done.err
    assert "SSH passwords guessed" in done.out


def test_a_file_that_nobody_could_read_is_not_called_harmless(run, tmp_path):
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 20)

    done = run("ingest", "noise.bin", "-o", "table")

    assert (done.code, done.out) == (7, "")


def test_a_cut_capture_gives_what_is_whole_and_says_what_is_missing(run, tmp_path):
    whole = capture(bytes.fromhex("000100000006010300000002"), b"\0\2\0\0\0\6\1\3\0\0\0\2")
    (tmp_path / "cut.pcap").write_bytes(whole[:-5])

    done = run("ingest", "cut.pcap", "--events")

    assert "1 packet, " in done.err
    assert "1 rejected (bad_record 1)" in done.err
    assert "the last record is cut, behind frame 1" in done.err


def test_an_unreadable_line_is_counted_with_its_place_and_reason(run, tmp_path):
    (tmp_path / "auth.log").write_text(GUESSING + "no log line at all\n" + GUESSING)

    done = run("ingest", "auth.log")

    assert "17 records, 17 events, 0 rejected, 1 unreadable" in done.err
    assert f"first unreadable at {len(GUESSING)}: no form of syslog" in done.err


def test_a_rule_that_lacks_a_list_of_the_site_is_named(run, tmp_path):
    write = bytes.fromhex("00020000000601060010002a")
    (tmp_path / "plant.pcap").write_bytes(capture(write))

    done = run("ingest", "plant.pcap")

    assert re.search(r"\d+ rules were not asked for want of lists of this site \(%", done.err)


def test_quiet_says_nothing_but_the_result(run, tmp_path):
    (tmp_path / "auth.log").write_text(GUESSING)

    assert run("ingest", "auth.log", "-q").err == ""


def test_a_collector_can_be_named_for_a_file_that_none_recognises(run, tmp_path):
    (tmp_path / "odd.log").write_text("something else\n" * 3)

    done = run("ingest", "odd.log", "--events", "--collector", "syslog")

    assert len(done.rows) == 3


def test_control_characters_of_an_attacker_are_shown_not_obeyed(run, tmp_path):
    line = "2026-03-01T10:00:0{}+00:00 gw sshd[7]: Failed password for ro\x1b[2Jot from 192.0.2.7"
    text = "".join(f"{line} port 22 ssh2\n".format(second) for second in range(8))
    (tmp_path / "auth.log").write_text(text)

    done = run("ingest", "auth.log", "--events", "-o", "csv")
    table = run("ingest", "auth.log", "--events", "-o", "table")

    assert done.code == 0
    assert "\x1b" not in table.out


@pytest.mark.parametrize("form", ["table", "json", "ndjson", "csv"])
def test_no_form_lets_a_text_from_outside_steer_the_terminal(run, node, tmp_path, form):
    steer = "\x1b]0;gone\x07 \x9b2J \u202ecba"
    line = f"2026-03-01T10:00:00+00:00 gw{steer} sshd[7]: Failed password for a{steer} from "
    (tmp_path / "auth.log").write_text(f"{line}192.0.2.7 port 40000 ssh2\n", encoding="utf-8")
    run("ingest", "--keep", "auth.log", "-c", str(node))

    events = run("search", "--since", "all", "-c", str(node), "-o", form).out

    assert len(events.splitlines()) > 1
    assert [char for char in events if not char.isprintable() and char != "\n"] == []


def test_json_says_the_same_text_with_its_controls_as_numbers(run, tmp_path):
    name = "a\x9b2J \u202ecba"
    line = f"2026-03-01T10:00:00+00:00 gw sshd[7]: Failed password for {name} from 192.0.2.7"
    (tmp_path / "auth.log").write_text(f"{line} port 40000 ssh2\n", encoding="utf-8")

    done = run("ingest", "auth.log", "--events")

    assert done.rows[0]["user.name"] == name
    assert "a\\u009b2J \\u202ecba" in done.out


def test_an_error_shows_the_controls_of_a_name(run):
    done = run("rule", "check", "no\x1b[2J.yml")

    assert done.code != 0
    assert "no\\x1b[2J.yml" in done.err
    assert "\x1b" not in done.err


def test_a_file_whose_name_is_no_utf_8_is_read(run, tmp_path):
    name = os.fsdecode(b"auth\xff.log")
    (tmp_path / name).write_text(GUESSING)

    done = run("ingest", name)

    assert (done.code, len(done.rows)) == (0, 1)
    assert "auth\\udcff.log (syslog): 8 records" in done.err


def test_what_a_node_keeps_is_for_its_account_alone(node, tmp_path):
    text = node.read_text().replace(str(tmp_path / "node" / "state"), str(tmp_path / "fresh"))
    (tmp_path / "fresh.toml").write_text(text)

    done = shell("ingest", "--keep", "auth.log", "-c", "fresh.toml", cwd=tmp_path)

    made = [tmp_path / "fresh", *(tmp_path / "fresh").rglob("*")]
    assert done.code == 0
    assert len(made) > 5
    assert [path for path in made if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)] == []


def test_a_node_keeps_what_it_is_told_to_and_reads_only_what_is_new(run, node, tmp_path):
    with (tmp_path / "auth.log").open("a") as file:
        file.write(GUESSING.replace("T10:", "T11:"))

    done = run("ingest", "--keep", "auth.log", "-c", str(node), "--events")

    assert [row["@timestamp"][11:19] for row in done.rows] == [f"11:00:0{n}" for n in range(8)]
    assert len(run("search", "-c", str(node), "--since", "all").rows) == 16


def test_what_a_node_has_read_it_does_not_tell_again(run, node):
    done = run("ingest", "--keep", "auth.log", "-c", str(node), "-o", "table")

    assert (done.code, done.out) == (0, "Nothing to report.\n")
    (source,) = settings_file.load(node).source
    assert f"{source.id}: was read before, nothing is new\n" in done.err


def test_what_was_read_by_hand_the_node_does_not_read_again(run, node, tmp_path):
    with (tmp_path / "auth.log").open("a") as file:
        file.write(GUESSING.replace("T10:", "T11:"))
    settings = settings_file.load(node)
    (named,) = settings.source
    once = (msgspec.structs.replace(named, follow=False),)
    made = assembly.node_of(msgspec.structs.replace(settings, source=once))
    (source,) = made.sources  # it would wait for more to come
    for gathered in made.collect_from(source):
        made.keep(gathered)
    made.close()

    assert len(run("search", "-c", str(node), "--since", "all").rows) == 16
    done = run("ingest", "--keep", "auth.log", "-c", str(node), "-o", "table")
    assert f"{source.id}: was read before, nothing is new\n" in done.err


def test_what_the_node_reads_from_a_folder_is_not_kept_by_hand_too(run, node, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text(GUESSING)
    (tmp_path / "logs" / "b.txt").write_text(GUESSING)
    folder = (
        f'[[source]]\nid = "logs"\nreader = "folder"\npath = "{tmp_path}/logs"\nglob = "*.log"\n'
    )
    node.write_text(f"{node.read_text()}\n{folder}")

    done = run("ingest", "--keep", "logs/a.log", "logs/b.txt", "-c", str(node), "-o", "table")

    assert done.code == 7
    assert "not read: a.log is read by the node itself, as source logs" in done.err
    assert "b.txt@" in done.err
    assert len(run("search", "-c", str(node), "--since", "all").rows) == 16


@pytest.mark.slow
def test_ctrl_c_keeps_the_place_and_the_same_command_goes_on(run, node, tmp_path):
    lines = 40_000
    with (tmp_path / "long.log").open("w") as file:
        file.writelines(
            f"2026-03-01T10:00:00+00:00 gw app[{number}]: x\n" for number in range(lines)
        )
    words = ("ingest", "--keep", "long.log", "-c", str(node), "-q", "-o", "ndjson")
    spool = node.parent / "state" / "events" / "spool"
    before = _size(spool)

    with subprocess.Popen([*CITYWARD, *words], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while _size(spool) <= before + 100_000 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    rest = shell(*words, "--events", cwd=tmp_path)

    assert process.returncode == 130
    assert said.decode() == "Interrupted; the same command goes on there.\n"
    places = [int(str(row["cw.record.place"])) for row in rest.rows]
    assert 0 < len(places) < lines
    assert places == sorted(set(places))
    found = run("search", "process.name:app", "-c", str(node), "--limit", "1",
                "--since", "all")  # fmt: skip
    assert f"1 of {lines:,} events" in found.err


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_reader_that_has_enough_is_no_fault(tmp_path):
    (tmp_path / "auth.log").write_text(GUESSING * 2_000)
    words = " ".join((*CITYWARD, "ingest --events -q auth.log | head -n 1; exit ${PIPESTATUS[0]}"))

    done = subprocess.run(
        ["bash", "-c", words], cwd=tmp_path, capture_output=True, timeout=PATIENCE_S, check=False
    )

    assert (done.returncode, done.stderr, done.stdout.count(b"\n")) == (0, b"", 1)


@pytest.mark.parametrize(
    ("file", "title", "address"),
    [
        ("sshd_bruteforce.log", "SSH passwords guessed from one address", "35.188.49.176"),
        ("sshd_bruteforce.log", "SSH user names tried from one address", "35.188.49.176"),
        ("iptables_port_scan.log", "Ports of one host scanned", "62.34.17.168"),
        ("iptables_port_scan.log", "Ports of one host scanned", "127.0.0.2"),
    ],
)
def test_a_real_log_says_who_did_what(run, data, file, title, address):
    rows = run("ingest", str(data / "logs" / file)).rows

    assert (title, address) in [(row["finding.title"], row["source.ip"]) for row in rows]


def test_six_failed_logins_of_a_real_log_are_six(run, data):
    rows = run("ingest", str(data / "logs" / "sshd_bruteforce.log")).rows

    assert sorted(str(row["finding.description"]).split(";")[0] for row in rows) == [
        "35.188.49.176 failed to log in 6 times within 2 min, last to sd-126005",
        "35.188.49.176 tried 6 user names that do not exist within 60 min,"
        " the last pascal5 on sd-126005",
    ]


@pytest.mark.slow
def test_ordinary_modbus_of_a_real_plant_is_nothing_to_report(run, data):
    done = run("ingest", str(data / "energy" / "modbus_plant1_normal.pcap"), "-o", "table")

    assert (done.code, done.out) == (0, "Nothing to report.\n")
    assert "15,387 packets" in done.err


# ---- Exit codes, one by one


def test_code_0_is_done(run, tmp_path):
    (tmp_path / "auth.log").write_text(QUIET_LOG)

    assert run("ingest", "auth.log").code == 0


def test_code_1_is_a_fault_of_ours_with_an_id_that_is_in_the_log(
    run, tmp_path, monkeypatch, caplog
):
    (tmp_path / "auth.log").write_text(QUIET_LOG)
    monkeypatch.setattr(assembly, "node_of", lambda *_, **__: 1 / 0)

    done = run("ingest", "auth.log")

    assert done.code == 1
    what, where, todo = done.err.splitlines()
    assert what == "ZeroDivisionError: division by zero"
    assert todo == "Please report it with the log."
    assert where.removeprefix("fault ") in caplog.text


@pytest.mark.parametrize(
    "words",
    [
        ("ingest", "--bogus"),
        ("ingest",),
        ("ingest", "not-there.log"),
        ("ingest", "empty"),
        ("ingest", "auth.log", "--collector", "bogus"),
        ("ingest", "auth.log", "--keep"),
        ("ingset",),
        ("finding", "set", "--status", "resolved"),
        ("init", "new", "--yes", "--sector", "bogus"),
        ("init", "new", "--yes", "--source", "not-there.log"),
    ],
)
def test_code_2_is_a_wrong_command_line(run, tmp_path, words):
    (tmp_path / "auth.log").write_text(QUIET_LOG)
    (tmp_path / "empty").mkdir()

    done = run(*words)

    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 3


@pytest.mark.parametrize(
    ("level", "code"), [("low", 3), ("medium", 3), ("high", 0), ("critical", 0)]
)
def test_code_3_is_a_finding_at_or_above_the_level_asked_for(run, tmp_path, level, code):
    (tmp_path / "auth.log").write_text(GUESSING)

    assert run("ingest", "auth.log", "--fail-on", level).code == code


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("operator = ", "no TOML: Invalid value", "cityward.toml"),
        ("operatr = 'x'", "Object contains unknown field `operatr`", "cityward.toml, top level"),
        ("[console]\nport = 'x'", "Expected `int`, got `str`", "cityward.toml, console.port"),
        ("sector = 'moon'", "'moon' is no sector", "cityward.toml, sector"),
    ],
)
def test_code_4_is_a_wrong_settings_file_and_names_the_key(run, tmp_path, text, what, where):
    (tmp_path / "cityward.toml").write_text(text)

    done = run("finding", "list")

    assert done.code == 4
    assert done.err.splitlines()[0].startswith(what)
    assert done.err.splitlines()[1] == where


@pytest.mark.parametrize("words", [("finding", "list"), ("search",), ("finding", "show", "abcd")])
def test_code_4_is_a_state_that_a_newer_cityward_wrote(run, node, words):
    import sqlite3

    db = sqlite3.connect(node.parent / "state" / "node.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    (node.parent / "state" / "events" / "format").write_text("99\n")

    done = run(*words, "-c", str(node))

    assert done.code == 4
    assert "newer" in done.err
    assert "Run the cityward that wrote it" in done.err


def test_code_4_is_a_node_that_never_ran_and_the_next_step_is_named(run):
    done = run("finding")

    assert done.code == 4
    assert done.err.splitlines()[0] == "no node has run here yet"
    assert "cityward init" in done.err.splitlines()[2]


def test_code_5_is_something_outside_that_did_not_answer(run, tmp_path, monkeypatch):
    def silent(*_: object, **__: object) -> None:
        raise TransientError("the store did not answer", "127.0.0.1:9200", "Try again.")

    (tmp_path / "auth.log").write_text(QUIET_LOG)
    monkeypatch.setattr(assembly, "node_of", silent)

    assert run("ingest", "auth.log").code == 5


def test_code_6_is_a_refusal_and_nothing_was_changed(run, node):
    before = node.read_bytes()

    done = run("init", str(node.parent), "--yes")

    assert done.code == 6
    assert node.read_bytes() == before


def test_code_7_is_done_in_part(run, tmp_path):
    (tmp_path / "auth.log").write_text(QUIET_LOG)
    (tmp_path / "empty.log").write_text("")

    done = run("ingest", "auth.log", "empty.log")

    assert done.code == 7
    assert "not read: empty.log is empty" in done.err


def test_help_lists_all_exit_codes(run):
    done = run("help", "exit-codes")

    assert [int(line.split()[0]) for line in done.out.splitlines()] == [
        0, 1, 2, 3, 4, 5, 6, 7, 130,
    ]  # fmt: skip


# ---- init


def test_init_makes_settings_keys_and_an_account_whose_password_works(run, tmp_path):
    from siem.config import load
    from siem.console.access import Access
    from siem.serve import Served

    done = run("init", "node", "--yes", "--name", "Tram “North”", "--sector", "transport.public",
               "--account", "ada", "--role", "analyst")  # fmt: skip

    settings = load(tmp_path / "node" / "cityward.toml")
    assert (done.code, settings.name, settings.operator) == (0, "Tram “North”", "op-tram-north")
    assert settings.console.host == "127.0.0.1"
    assert [source.listen for source in settings.source] == ["127.0.0.1:5514"]
    state = tmp_path / "node" / "state"
    assert settings.state_path == state
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "operator.key").stat().st_mode) == 0o600
    said = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    person = Access(Served(settings)).check_password("ada", said["password"], "192.0.2.1")
    assert person is not None
    assert person.role == "analyst"


def test_the_password_is_nowhere_on_the_disk(run, tmp_path):
    done = run("init", "node", "--yes")

    password = re.search(r"password +(\S+)", done.out)[1].encode()  # type: ignore[index]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert [path for path in files if password in path.read_bytes()] == []


def test_init_recognises_the_files_it_is_given(run, tmp_path):
    from siem.config import load

    (tmp_path / "auth.log").write_text(GUESSING)
    (tmp_path / "plant.pcap").write_bytes(capture(b"\0\1\0\0\0\6\1\3\0\0\0\2"))
    (tmp_path / "gates").mkdir()

    run("init", "node", "--yes", "--source", "auth.log", "--source", "plant.pcap", "--source",
        "gates", "--source", "syslog_tcp:127.0.0.1:6514", "--source", "auth.log")  # fmt: skip

    found = load(tmp_path / "node" / "cityward.toml").source
    assert [(one.id, one.reader) for one in found] == [
        ("auth-log", "file"),
        ("plant-pcap", "capture"),
        ("gates", "folder"),
        ("syslog-tcp", "syslog_tcp"),
        ("auth-log-2", "file"),
    ]


def test_init_asks_on_a_terminal(run, tmp_path, monkeypatch):
    from siem.config import load

    answers = iter(["Harbour", "4", "not-there", "auth.log", "", "bo"])
    (tmp_path / "auth.log").write_text(GUESSING)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda: next(answers))

    done = run("init", "node")

    settings = load(tmp_path / "node" / "cityward.toml")
    assert (settings.name, settings.sector) == ("Harbour", "transport.maritime")
    assert [source.id for source in settings.source] == ["auth-log"]
    assert re.search(r"account +bo", done.out)
    assert "not-there is not there" in done.err


def test_init_without_a_terminal_names_the_option_that_is_missing(run, tmp_path):
    done = run("init", "node")

    assert done.code == 2
    assert "--sector" in done.err
    assert not (tmp_path / "node").exists()


# ---- search


def test_search_finds_events_newest_first(run, node):
    rows = run("search", "user.name:root", "--since", "all", "-c", str(node)).rows

    assert [str(row["@timestamp"])[17:19] for row in rows] == [f"0{n}" for n in range(7, -1, -1)]


def test_search_says_how_many_there_are_and_prints_as_many_as_asked(run, node):
    done = run("search", "--since", "all", "--limit", "3", "-c", str(node))

    assert len(done.rows) == 3
    assert done.err == "3 of 8 events\n"


@pytest.mark.parametrize(
    ("since", "until", "count"),
    [
        ("all", "", 8),
        ("2026-03-01T10:00:04Z", "", 4),
        ("2026-03-01T10:00:02", "2026-03-01T12:00:04+02:00", 2),
    ],
)
def test_search_takes_a_span_of_time(run, node, since, until, count):
    words = ["search", "--since", since, *(["--until", until] if until else [])]

    assert len(run(*words, "-c", str(node)).rows) == count


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("user.nam:root",), "query, character 1"),
        (("(user.name:root",), "query, character"),
        (("--since", "yesterday"), "--since"),
        (("--until", "2020-01-01"), "--until"),
        (("--limit", "0"), "--limit"),
        (("--follow", "-o", "json"), "-o"),
    ],
)
def test_a_search_that_cannot_be_is_told_where(run, node, words, where):
    done = run("search", *words, "-c", str(node))

    assert done.code == 2
    assert done.err.splitlines()[1].startswith(where)


def test_a_followed_search_prints_what_comes(run, node, tmp_path):
    with subprocess.Popen(
        [*CITYWARD, "search", "user.name:*", "--follow", "-c", str(node)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        lines: list[dict[str, Any]] = []
        reading = threading.Thread(target=_read_eight, args=(process, lines), daemon=True)
        reading.start()
        # What is kept before it looks for the first time is no news to it.
        for number in range(20):
            (tmp_path / f"more-{number}.log").write_text(GUESSING.replace("root", "ada"))
            run("ingest", "--keep", f"more-{number}.log", "-c", str(node))
            reading.join(2)
            if not reading.is_alive():
                break
        process.send_signal(signal.SIGINT)
        reading.join(PATIENCE_S)
        _, said = process.communicate(timeout=PATIENCE_S)

    assert [line["user.name"] for line in lines] == ["ada"] * 8
    assert (process.returncode, said) == (0, "")


def _read_eight(process: subprocess.Popen[str], lines: list[dict[str, Any]]) -> None:
    assert process.stdout is not None
    for _ in range(8):
        if line := process.stdout.readline():
            lines.append(json.loads(line))


# ---- finding


def one_of(run: Run, node: Path) -> dict[str, object]:
    (row,) = run("finding", "list", "-c", str(node)).rows
    return row


def test_a_noun_alone_lists(run, node):
    assert run("finding", "-c", str(node)).rows == run("finding", "list", "-c", str(node)).rows


def test_an_empty_table_is_no_table(run, node):
    done = run("finding", "-o", "table", "-c", str(node), "--since", "1s")

    assert (done.out, done.err) == ("", "No finding matches.\n")


def test_findings_are_filtered_by_a_query(run, node):
    assert len(run("finding", "list", "finding.severity:>=medium", "-c", str(node)).rows) == 1
    done = run("finding", "list", "finding.severity:>=high", "-c", str(node))
    assert (done.rows, done.err) == ([], "No finding matches.\n")


def test_a_finding_is_shown_with_why_events_and_history(run, node):
    found = one_of(run, node)

    done = run("finding", "show", str(found["finding.id"])[:8], "-c", str(node), "-o", "table")

    assert done.out.splitlines()[:2] == [
        "SSH passwords guessed from one address",
        "192.0.2.7 failed to log in 8 times within 2 min, last to gw; if one of the passwords is"
        " right, it is in.",
    ]
    assert "why it spoke: event_count gte: 5" in done.out
    assert "events (8 kept, newest first)" in done.out
    assert "sshd[7]: Failed password for root from 192.0.2.7 port 4007 ssh2" in done.out
    assert re.search(r"Z  made: \d events", done.out)


def test_what_is_set_stays_in_the_history_with_name_and_reason(run, node, monkeypatch):
    monkeypatch.setattr("siem.commands.finding.who", lambda: "ada")
    id_ = str(one_of(run, node)["finding.id"])

    done = run("finding", "set", id_[:8], "--status", "resolved", "--verdict", "benign",
               "--reason", "our scanner", "-c", str(node))  # fmt: skip

    assert (done.code, done.err) == (0, "1 of 1 findings changed\n")
    (row,) = run("finding", "show", id_, "-c", str(node)).rows
    assert (row["finding.status"], row["finding.verdict"]) == ("resolved", "benign")
    last = row["cw.history"][-1]  # type: ignore[index]
    assert (last["by"], last["what"], last["why"]) == (
        "ada",
        "status resolved, verdict benign",
        "our scanner",
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "nothing is to be changed"),
        (("--status", "resolved"), "resolving needs a verdict"),
        (("--status", "suppressed"), "suppressing needs an end, and only that"),
        (("--status", "new", "--until", "4h"), "suppressing needs an end, and only that"),
        (("--status", "suppressed", "--until", "400d"), "400d is past, or more than a year away"),
        (("--reason", "x" * 2001), "a reason of more than 2,000 characters"),
    ],
)
def test_a_change_that_says_too_little_is_refused(run, node, words, what):
    id_ = str(one_of(run, node)["finding.id"])

    done = run("finding", "set", id_, *words, "-c", str(node))

    assert (done.code, done.err.splitlines()[0]) == (2, what)


@pytest.mark.parametrize("named", ["zz", "ffffffff", "*", "a b c d", "\x1b[2J", "'; DROP TABLE"])
def test_a_finding_that_is_not_there_is_said(run, node, named):
    done = run("finding", "show", named, "-c", str(node))

    assert done.code == 2
    assert "there is no finding" in done.err
    assert "\x1b" not in done.err


# ---- source and doctor


def test_sources_are_listed_with_what_they_brought(run, node):
    (row,) = run("source", "list", "-c", str(node)).rows

    assert (row["source"], row["reader"], row["state"]) == ("auth-log", "file", "ended")


def test_one_source_is_shown(run, node):
    done = run("source", "show", "auth-log", "-c", str(node), "-o", "table")

    assert re.search(r"^source +auth-log$", done.out, re.MULTILINE)
    assert run("source", "show", "bogus", "-c", str(node)).code == 2


def test_a_source_check_reads_a_sample_and_keeps_nothing(run, node):
    events = len(run("search", "--since", "all", "-c", str(node)).rows)

    done = run("source", "check", "auth-log", "-c", str(node))

    assert done.code == 0
    assert [(row["records"], row["malformed"], row["ok"]) for row in done.rows] == [(8, 0, "yes")]
    assert len(run("search", "--since", "all", "-c", str(node)).rows) == events


def test_a_source_check_tells_what_cannot_be_read(run, node, tmp_path):
    with (tmp_path / "auth.log").open("a") as file:
        file.write("no log line\n")

    done = run("source", "check", "-c", str(node))

    assert done.code == 3
    assert done.rows[0]["malformed"] == 1
    assert str(done.rows[0]["first"]).startswith("no form of syslog")


def rows_of(done: Done) -> dict[str, dict[str, object]]:
    return {str(row["check"]): row for row in done.rows}


def test_a_sound_node_has_nothing_wrong(run, node):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    node.write_text(node.read_text().replace("8765", str(port)))

    done = run("doctor", "-c", str(node))

    assert done.code == 0
    assert [row["check"] for row in done.rows if row["state"] == "wrong"] == []
    assert {"settings", "rights", "clock", "disk", "store", "accounts", "rules"} <= set(
        rows_of(done)
    )


def test_a_port_that_is_taken_is_wrong(run, node):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node.write_text(node.read_text().replace("8765", str(taken.getsockname()[1])))
        done = run("doctor", "-c", str(node))

    assert done.code == 3
    row = rows_of(done)["port of the console"]
    assert (row["state"], row["next"]) == ("wrong", "Stop what listens there, or set another port.")


@pytest.mark.parametrize(
    ("change", "check", "state", "code"),
    [
        (("sector =", "sectr ="), "settings", "wrong", 4),
        (('host = "127.0.0.1"', 'host = "0.0.0.0"'), "console", "wrong", 4),
        (("[console]", '[rules]\nfolders = ["bad-rules"]\n[console]'), "rules", "wrong", 4),
        (("[console]", '[rules]\nfolders = ["no-rules"]\n[console]'), "rules", "wrong", 4),
        (("auth.log", "gone.log"), "source auth-log", "note", 0),
        (("auth.log", "noise.bin"), "source auth-log", "wrong", 3),
    ],
)
def test_the_doctor_names_what_is_wrong(run, node, tmp_path, change, check, state, code):
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    (tmp_path / "bad-rules").mkdir()
    (tmp_path / "bad-rules" / "bad.yml").write_text("title: No rule\n")
    node.write_text(node.read_text().replace("port = 8765", "port = 0").replace(*change))

    done = run("doctor", "-c", str(node))

    assert done.code == code
    assert (check, state) in [(row["check"], row["state"]) for row in done.rows]


def test_the_doctor_counts_the_refused_rules_it_does_not_name_and_says_where_to_look(
    run: Run, node: Path, tmp_path: Path
) -> None:
    own = tmp_path / "our rules"
    own.mkdir()
    for number in range(25):
        (own / f"{number}.yml").write_text("title: No rule\n")
    named = f'[rules]\nfolders = ["{own}"]\n[console]'
    node.write_text(node.read_text().replace("port = 8765", "port = 0").replace("[console]", named))

    done = run("doctor", "-c", str(node))

    wrong = [row for row in done.rows if row["state"] == "wrong"]
    assert len(wrong) == 21
    assert wrong[-1]["what"] == "5 more are refused"
    assert {row["next"] for row in wrong} == {f"cityward rule check '{own}'"}


def test_a_state_of_a_newer_cityward_is_a_matter_of_code_4(run, node):
    (node.parent / "state" / "events" / "format").write_text("99\n")

    done = run("doctor", "-c", str(node))

    assert done.code == 4
    assert rows_of(done)["store"]["state"] == "wrong"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_state_that_is_not_ours_is_wrong(run, node):
    (node.parent / "state").chmod(0o500)

    done = run("doctor", "-c", str(node))

    assert rows_of(done)["rights"]["state"] == "wrong"


def test_keys_that_others_may_read_are_wrong(run, node):
    (node.parent / "state").chmod(0o755)
    (node.parent / "state" / "operator.key").chmod(0o644)

    done = run("doctor", "-c", str(node))

    assert done.code == 3
    assert "operator.key" in str(rows_of(done)["rights"]["what"])


# ---- Forms, help, speed of the start


@pytest.mark.parametrize(
    "words",
    [("finding", "list"), ("search", "--since", "all"), ("source", "list"), ("doctor",)],
)
def test_every_list_has_every_form_with_the_same_rows(run, node, words):
    lines = run(*words, "-c", str(node), "-o", "ndjson").rows
    whole = json.loads(run(*words, "-c", str(node), "-o", "json").out)
    cells = list(csv.DictReader(io.StringIO(run(*words, "-c", str(node), "-o", "csv").out)))
    table = run(*words, "-c", str(node), "-o", "table").out

    assert unclocked(whole) == unclocked(lines)
    assert len(cells) == len(lines) >= 1
    assert len(table.splitlines()) > len(lines)


def unclocked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, less the hour that ``doctor`` prints: two runs are not at the same second."""
    return [row | {"what": ""} if row.get("check") == "clock" else row for row in rows]


def commands() -> Iterator[tuple[str, ...]]:
    """Every command, by its words."""
    for name in cli.app:
        if not name.startswith("-") and name != "help":
            command = cli.app[name]
            verbs = [verb for verb in command if not verb.startswith("-")]
            yield from ((name, verb) for verb in verbs) if verbs else [(name,)]


STAYS = {("openc2-consumer",), ("collect",), ("demo",), ("hub",), ("run",), ("serve",), ("worker",)}
"""Commands that go on until they are stopped; tests of their own run them."""
TESTED_ELSEWHERE = {("rule", "check"), ("rule", "test"), ("rule", "try")} | {
    ("rule", "backtest"),
    ("rule", "export"),
    ("rule", "deploy"),
    ("rule", "revert"),
    ("rule", "history"),
    ("rule", "release"),
    ("rule", "aside"),
    ("filter", "remove"),
    ("route", "test"),
    ("operator", "enrol"),
    ("operator", "list"),
    ("operator", "revoke"),
    ("operator", "join"),
    ("operator", "request"),
    ("operator", "admit"),
    ("ledger", "mirror"),
    ("ledger", "access"),
    ("share", "readers"),
    ("store", "init"),
    ("store", "verify"),
    ("store", "retain"),
    ("store", "replay"),
    ("bench", "node"),
    ("bench", "packets"),
    ("bench", "protocols"),
    ("bench", "hub"),
    ("bench", "index"),
    ("bench", "backtest"),
    ("bench", "playbook"),
    ("bench", "sigma"),
    ("playbook", "refuse"),
    ("playbook", "plan"),
    ("playbook", "breaker"),
    ("playbook", "stage"),
    ("playbook", "undo"),
}
CMDB = "Host,Type,IP,Importance\nrtu-7,rtu,192.0.2.70,high\nrtu-7b,rtu,02-00-00-00-00-07,low\n"
ONE_RULE = """\
title: One
id: 6f1f2c34-0000-4000-8000-000000000001
logsource: {product: linux, service: sshd}
detection: {one: {user.name: root}, condition: one}
level: low
"""
INVENTORY = 'asset import cmdb.csv --map "Host=id" --map "Importance=criticality" --yes'
PREPARED: dict[tuple[str, ...], Sequence[str]] = {
    ("restore",): ["backup node.tar"],
    **{
        ("incident", verb): ['incident open "Unknown writer" --aware 2h']
        for verb in ("show", "set", "clock", "draft", "submit")
    },
    ("share", "check"): ["share example policy.yml"],
    ("share", "preview"): ["share example policy.yml"],
    ("source", "remove"): ["source add sensor quay-4"],
    ("asset", "show"): [INVENTORY.replace("Host=id", "IP=id")],
    ("asset", "retire"): [INVENTORY],
    ("asset", "merge"): [INVENTORY.replace("rtu-7b", "x")],
    ("calendar", "remove"): ["calendar add maintenance --until 4h --reason test"] * 3,
    ("person", "disable"): ["person add ada"],
    ("person", "enable"): ["person add ada"],
    ("person", "reset"): ["person add ada"],
    ("token", "add"): ["person add ada"],
    ("token", "revoke"): ["person add ada", 'token add "ticket desk" --person ada'],
}
"""What must be there before an example can run."""
EXAMPLE = re.compile(r"Example: (cityward .+)$", re.MULTILINE)


@pytest.mark.parametrize("words", [pytest.param(one, id=" ".join(one)) for one in commands()])
def test_the_example_in_the_help_of_a_command_runs(words, run, node, tmp_path, monkeypatch):
    if words in STAYS | TESTED_ELSEWHERE:
        assert run(*words, "--help").out.startswith(f"Usage: cityward {' '.join(words)}")
        return
    command = cli.app
    for word in words:
        command = command[word]
    example = EXAMPLE.search(inspect.getdoc(command.default_command) or "")
    assert example, f"the help of {' '.join(words)} has no example"
    monkeypatch.setenv("CITYWARD_CONFIG", str(node))
    (tmp_path / "cmdb.csv").write_text(CMDB)
    (tmp_path / "sigma" / "rules").mkdir(parents=True)
    (tmp_path / "sigma" / "rules" / "one.yml").write_text(ONE_RULE)
    (tmp_path / "capture.pcap").write_bytes(capture(b"\0\1\0\0\0\6\1\3\0\0\0\2"))
    (tmp_path / "cityward.toml").write_text(node.read_text().replace("port = 8765", "port = 0"))
    for before in PREPARED.get(words, ()):
        assert run(*_words(before)).code == 0, before
    given = _words(_with_ids(example[1], run, node).partition(" > ")[0])

    done = run(*given[1:])

    assert done.code == 0, done.err


def _with_ids(line: str, run: Run, node: Path) -> str:
    """The example with ids of this node for those that it shows."""
    line = line.replace("0b8f4e1c", str(one_of(run, node)["finding.id"])[:8])
    for token in run("token", "list").rows:
        line = line.replace("1f0c2a9b7d3e", str(token["id"]))
    return line.replace(" node ", " other ")


def _words(line: str) -> Sequence[str]:
    import shlex

    return shlex.split(line)


@pytest.mark.parametrize("noun", ["", *cli.NOUNS])
def test_a_list_of_commands_says_what_each_is_for(noun, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    functions = cli.NOUNS[noun][1] if noun else cli.COMMANDS

    shown = [line.strip("│ ") for line in run(*noun.split(), "--help").out.splitlines()]

    for name in functions:
        assert any(re.match(rf"{name}  +\w.*\.", line) for line in shown), name


def test_help_on_a_command_is_its_help_and_on_something_else_an_error(run):
    assert run("help", "rule").out == run("rule", "--help").out
    assert run("help").out == run("--help").out

    assert (run("help", "rules").code, run("help", "rules").out) == (2, "")


def test_a_wrong_verb_points_to_the_verbs_of_its_noun(run):
    done = run("rule", "nothing")

    assert done.code == 2
    assert done.err.splitlines()[-1] == "See cityward rule --help."


def test_the_path_is_not_measured_on_what_no_collector_reads(run, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear city,\n")

    for name in ("letter.txt", "nowhere"):
        done = run("bench", "node", str(tmp_path / name))

        assert (done.code, done.out) == (7, "")
        assert name in done.err


def test_help_loads_nothing_heavy():
    heavy = ("numpy", "duckdb", "fastapi", "sklearn", "river", "pyarrow", "luqum", "argon2", "yaml")
    code = (
        "import sys; from siem import cli; assert cli.run(['--help']) == 0;"
        f"print(sorted(set({heavy}) & set(sys.modules)), file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert "ingest" in done.stdout
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("text", "seconds"), [("15m", 900), ("24h", 86_400), ("now-7d", 604_800), ("2w", 1_209_600)]
)
def test_a_span_is_written_as_people_say_it(text, seconds):
    from cityward.checks import NOW

    assert (NOW - common.moment(text, "--since", NOW)).total_seconds() == seconds
