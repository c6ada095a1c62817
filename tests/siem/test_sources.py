"""Which collector reads a source of the settings, where nobody names one."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from cityward import ConfigError, InputError
from siem import cli, config
from siem.assembly import sources_of
from siem.store.protocol import SourceState

SSHD = (
    b"Mar  1 10:00:01 gw-7 sshd[811]: Failed password for root from 203.0.113.7 port 40001 ssh2\n"
)
EVE = b'{"timestamp":"2022-07-12T11:26:36.407881+0000","flow_id":1,"event_type":"alert"}\n'
PCAP = b"\xd4\xc3\xb2\xa1\2\0\4\0" + bytes(8) + b"\xff\xff\0\0\1\0\0\0"


def collector(reader: str, path: Path, glob: str = "*") -> str:
    one = config.Source(id="one", reader=reader, path=str(path), glob=glob)
    (source,) = sources_of(config.Settings(source=(one,)))
    return source.name


def test_a_file_that_is_yet_to_come_keeps_no_node_from_its_other_sources(tmp_path, caplog):
    (tmp_path / "just-rotated.log").touch()
    with caplog.at_level(logging.WARNING):
        assert collector("file", tmp_path / "later.log") == "syslog"
        assert collector("file", tmp_path / "just-rotated.log") == "syslog"
    assert caplog.text.count("name the collector of source one") == 2


def test_a_file_of_no_kind_is_refused_with_the_setting_that_helps(tmp_path):
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    with pytest.raises(InputError) as refused:
        collector("file", tmp_path / "noise")
    assert refused.value.todo.startswith("Name the collector of source one: ")


def test_a_folder_is_read_by_what_its_files_have_in_common(tmp_path, caplog):
    assert collector("folder", tmp_path) == "syslog"
    (tmp_path / "eve.json").write_bytes(EVE)
    assert collector("folder", tmp_path) == "suricata"
    (tmp_path / "auth.log").write_bytes(SSHD)
    assert collector("folder", tmp_path, "*.json") == "suricata"
    with caplog.at_level(logging.WARNING):
        assert collector("folder", tmp_path) == "syslog"
    assert "its files are of several kinds" in caplog.text


def test_a_capture_is_a_capture_also_as_a_file_and_a_folder_of_them_is_refused(tmp_path):
    (tmp_path / "a.pcap").write_bytes(PCAP)
    assert collector("file", tmp_path / "a.pcap") == "packets"
    with pytest.raises(ConfigError, match="folder of captures"):
        collector("folder", tmp_path)


def test_the_token_of_a_sensor_comes_from_standard_input_as_the_help_says(
    tmp_path, monkeypatch, capsys
):
    settings = tmp_path / "sensor.toml"
    settings.write_text(f'state_dir = "{tmp_path}"\nsensor.node = "127.0.0.1:1"\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("no such thing\n"))
    cli.run(["collect", "--config", str(settings), "--enrol", "-"])
    assert "no token" in capsys.readouterr().err


def test_the_doctor_says_what_the_running_node_says_of_a_source(tmp_path, monkeypatch, capsys):
    settings = tmp_path / "cityward.toml"
    settings.write_text(
        f'state_dir = "{tmp_path}"\n'
        '[[source]]\nid = "river"\nreader = "http"\n'
        'url = "http://127.0.0.1:1"\ncollector = "river"\n'
    )
    error = "no answer\nsource river\nIt is asked again in 10 s."
    state = SourceState(source="river", collector="river", state="failed", error=error)
    monkeypatch.setattr("siem.commands.doctor._is_running", lambda _: True)
    monkeypatch.setattr("siem.commands.doctor.states_of", lambda _: {"river": state})
    cli.run(["doctor", "-c", str(settings), "-o", "ndjson"])
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "source river" in line)
    assert '"wrong","what":"no answer","next":"It is asked again in 10 s."' in said
