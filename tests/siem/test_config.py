"""Settings: found in one place, checked whole, and an error names file and key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cityward import ConfigError
from siem import config
from siem.config import Settings


def load(folder: Path, text: str) -> Settings:
    path = folder / "cityward.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def test_every_default_is_safe_for_a_control_network():
    settings = Settings()

    assert settings.console.host == "127.0.0.1"
    assert settings.source == ()
    assert settings.mode == "normal"
    assert not settings.response.on
    assert not settings.response.alone
    assert settings.rules.folders == ()
    assert config.Source(id="x", reader="syslog_udp").listen == "127.0.0.1:5514"


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load(tmp_path, "") == Settings()


def test_a_whole_file_is_read(tmp_path):
    settings = load(
        tmp_path,
        """
        operator = "op-grid"
        sector = "energy.electricity"
        state_dir = "/srv/state"
        [retention]
        events_days = 7
        [[source]]
        id = "span"
        reader = "capture"
        path = "/srv/span.pcap"
        [[zone]]
        id = "z7"
        type = "control"
        networks = ["192.0.2.0/24"]
        purdue = 1
        [[asset]]
        id = "rtu-7"
        addresses = ["192.0.2.7"]
        zone = "z7"
        [lists]
        dispatch_servers = ["192.0.2.9"]
        """,
    )

    assert settings.state_path == Path("/srv/state")
    assert settings.retention.events_days == 7
    assert settings.retention.findings_days == 365
    assert settings.source[0].path == "/srv/span.pcap"
    assert settings.zone[0].purdue == 1.0
    assert settings.asset[0].zone == "z7"
    assert settings.lists == {"dispatch_servers": ("192.0.2.9",)}


@pytest.mark.parametrize(
    ("text", "what", "key"),
    [
        ("operater = 'x'", "unknown field `operater`", "top level"),
        ("[console]\nprot = 1", "unknown field `prot`", "console"),
        ("[console]\nport = '1'", "Expected `int`, got `str`", "console.port"),
        ("[[source]]\nid = 'a'", "missing required field `reader`", "source[0]"),
        (
            "[[source]]\nid = 'a'\nreader = 'telex'",
            "Invalid enum value 'telex'",
            "source[0].reader",
        ),
        ("[[zone]]\nid = 'a'\ntype = 'moon'", "Invalid enum value 'moon'", "zone[0].type"),
        ("[[asset]]\nid = 'a'\ncolour = 'red'", "unknown field `colour`", "asset[0]"),
        ("operator = 'Op Grid'", "'Op Grid' is no operator id", "operator"),
        ("operator = ''", "'' is no operator id", "operator"),
        ("sector = 'moon'", "'moon' is no sector", "sector"),
        ("[[source]]\nid = 'a'\nreader = 'file'", "a file source needs path", "source[0].path"),
        (
            "[[source]]\nid = 'a'\nreader = 'file'\npath = 'x'\nring_gb = 1",
            "only an interface keeps a ring of packets",
            "source[0].ring_hours",
        ),
        (
            "[[source]]\nid = '../a'\nreader = 'interface'\ninterface = 'x'\nring_gb = 1",
            "'../a' is no name of a folder",
            "source[0].id",
        ),
        (
            "[[source]]\nid = 'a'\nreader = 'interface'",
            "a interface source needs interface",
            "source[0].interface",
        ),
        (
            "[[asset]]\nid = 'a'\nzone = 'z'\n[[zone]]\nid = 'y'\ntype = 'iot'",
            "'z' is no zone of this file",
            "asset[0].zone",
        ),
        (
            "[[zone]]\nid = 'y'\ntype = 'iot'\n[[zone]]\nid = 'y'\ntype = 'iot'",
            "'y' is there twice or empty",
            "zone[1].id",
        ),
        ("[[asset]]\nid = ''", "'' is there twice or empty", "asset[0].id"),
        ("[retention]\nevents_days = 0", "things are kept for 1 to 36500 days", "retention"),
        (
            "[retention]\nevents_days = 1_000_000_000",
            "things are kept for 1 to 36500 days",
            "retention",
        ),
        (
            "[retention]\ndisk_quota_gb = -1.0",
            "-1.0 is no size; 0 is no limit",
            "retention.disk_quota_gb",
        ),
        (
            "[retention]\ndisk_quota_gb = nan",
            "nan is no size; 0 is no limit",
            "retention.disk_quota_gb",
        ),
        (
            "[rules]\nshare_max = 1.5",
            "1.5 is no part of the time; 0 is no limit",
            "rules.share_max",
        ),
        ("[console]\nport = 65_536", "65536 is no port", "console.port"),
        (
            "[response.zones]\nA1 = ['safety']",
            "Invalid enum value 'safety'",
            "response.zones.A1[0]",
        ),
        (
            "[response.actuators.nftables]\nssh_password = 'x'",
            "a secret is named, not written: ssh_password_env",
            "response.actuators.nftables.ssh_password",
        ),
        (
            "[response]\nkeep = {'192.0.2.300' = 'partner'}",
            "'192.0.2.300' is no address, network or domain",
            "response.keep",
        ),
        (
            "[response]\npeak_hours = ['all day']",
            "'all day' is no span; write mo-fr 06:30-09:00",
            "response.peak_hours",
        ),
        (
            "[response]\ntime_zone = 'Europe/Atlantis'",
            "'Europe/Atlantis' is no time zone",
            "response.time_zone",
        ),
        (
            "[response]\nblast_share = 1.5",
            "1.5 is no share: more than 0, at most 1",
            "response.blast_share",
        ),
        (
            "[response]\nredis = 'redis'",
            "'redis' is no rediss://name:port/0",
            "response.redis",
        ),
        (
            "[[response.nonessential]]\nsource = 'it'\ndestination = ''\nwhy = 'x'",
            "a flow has two ends and a reason",
            "response.nonessential[0]",
        ),
        (
            "[[source]]\nid = 'a'\nreader = 'syslog_udp'\nlisten = '5514'",
            "'5514' is no address:port",
            "source[0].listen",
        ),
        (
            "[[source]]\nid = 'a'\nreader = 'syslog_tcp'\nlisten = '127.0.0.1:65536'",
            "'127.0.0.1:65536' is no address:port",
            "source[0].listen",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_file_and_key(tmp_path, text, what, key):
    with pytest.raises(ConfigError) as said:
        load(tmp_path, text)

    assert what in said.value.what
    assert said.value.where == f"{tmp_path / 'cityward.toml'}, {key}"
    assert said.value.exit_code == 4


@pytest.mark.parametrize("data", [b"operator = ", b"\xff\xfe", b"[a]\n[a]"])
def test_a_file_that_is_no_toml_is_named(tmp_path, data):
    path = tmp_path / "cityward.toml"
    path.write_bytes(data)

    with pytest.raises(ConfigError, match="no TOML") as said:
        config.load(path)

    assert said.value.where == str(path)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and an empty folder to be in."""
    (tmp_path / "home" / ".config" / "cityward").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_the_first_place_counts_and_nothing_is_merged(places):
    named, variable = places / "named.toml", places / "variable.toml"
    here = places / "here" / "cityward.toml"
    home = places / "home" / ".config" / "cityward" / "cityward.toml"
    for path in (named, variable, here, home):
        path.write_text("")

    found = [
        config.find(str(named), {"CITYWARD_CONFIG": str(variable)}),
        config.find(None, {"CITYWARD_CONFIG": str(variable)}),
        config.find(None, {}),
    ]
    here.unlink()
    found.append(config.find(None, {}))

    assert [path and path.resolve() for path in found] == [named, variable, here, home]


def test_no_file_is_no_fault(places):
    if Path("/etc/cityward/cityward.toml").exists():
        pytest.skip("this machine has a node")

    assert config.find(None, {}) is None


@pytest.mark.parametrize(
    ("named", "environment", "where"),
    [("gone.toml", {}, "--config"), (None, {"CITYWARD_CONFIG": "gone.toml"}, "CITYWARD_CONFIG")],
)
def test_a_file_that_was_named_must_be_there(places, named, environment, where):
    with pytest.raises(ConfigError) as said:
        config.find(named, environment)

    assert (said.value.what, said.value.where) == ("gone.toml is no file", where)


def test_the_state_folder_may_be_in_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")

    assert Settings().state_path == Path("/home/ada/.local/state/cityward")


def test_the_schema_for_editors_refuses_what_the_program_refuses():
    import jsonschema

    schema = msgspec.json.schema(Settings)
    check = jsonschema.Draft202012Validator(schema)

    assert check.is_valid({"operator": "op-a", "source": [{"id": "a", "reader": "file"}]})
    assert not check.is_valid({"operater": "op-a"})
    assert not check.is_valid({"console": {"port": "1"}})
