"""Evidence: cut, hashed, dissected, kept for a while in bounded space, once a command."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import Command, Target, TransientError, Unsafe
from cityward.checks import check_actuator
from playbooks.actuators.evidence import Evidence
from playbooks.targets import target_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOST = Target("ipv4_net", "192.0.2.7")
FLOW = target_of(
    "ipv4_connection", {"src_addr": "192.0.2.7", "dst_addr": "192.0.2.9", "dst_port": 502}
)


class Cut(msgspec.Struct):
    packets: int
    bytes: int
    sha256: str
    first: datetime | None = NOW
    last: datetime | None = NOW
    notes: Sequence[str] = ()


class Rings:
    """In the place of the capture rings: gives a file of so many bytes."""

    def __init__(self, size: int = 100) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self.size = size

    def __call__(self, path: Path, **wanted: Any) -> Cut:
        self.asked.append(wanted)
        if not self.size:
            return Cut(0, 0, "", None, None, ("no source keeps a ring",))
        path.write_bytes(bytes(self.size))
        return Cut(3, self.size, hashlib.sha256(bytes(self.size)).hexdigest())


class Desk:
    """One actuator with a clock that is turned by hand."""

    def __init__(self, folder: Path, rings: Rings, **more: Any) -> None:
        self.now, self.told, self.rings = NOW, [], rings
        self.folder = folder / "evidence"
        self.evidence = Evidence(
            folder=self.folder,
            cut=rings,
            dissect=lambda path: [("scapy", {"frames": 3, "file": path.name})],
            tell=lambda finding, entry: self.told.append((finding, entry)),  # type: ignore[attr-defined]
            holder="op-port",
            clock=lambda: self.now,
            **more,
        )

    def copy(self, key: str = "k1", target: Target = HOST, **args: Any) -> None:
        args = {"finding": "f1", "since": (self.now - timedelta(minutes=5)).isoformat(), **args}
        (command,) = self.evidence.plan("copy", target, self.now)
        self.evidence.apply(msgspec.structs.replace(command, key=key, args=args))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def test_a_piece_of_evidence_says_what_it_is_and_who_holds_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings())

    desk.copy(until=NOW.isoformat())
    (note,) = desk.evidence.kept()
    (told,) = desk.told

    name = hashlib.sha256(b"k1").hexdigest()[:32]
    assert desk.names() == [f"{name}.json", f"{name}.pcap"]
    assert stat.S_IMODE((desk.folder / f"{name}.json").stat().st_mode) == 0o600
    assert note.tools == {"scapy": {"frames": 3, "file": f"{name}.pcap"}}
    assert told == (
        "f1",
        {
            "ref": f"evidence/{name}.pcap",
            "kind": "pcap",
            "sha256": hashlib.sha256(bytes(100)).hexdigest(),
            "bytes": 100,
            "time": "2026-03-01T12:00:00+00:00",
            "holder": "op-port",
            "until": "2026-03-31T12:00:00+00:00",
        },
    )


def test_the_span_of_the_finding_is_cut_with_a_minute_around_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings())

    desk.copy("a", FLOW, until="2026-03-01T11:58:00+00:00")
    desk.copy("b", ports=["20000", 502], since="(not known)")

    assert desk.rings.asked == [
        {
            "networks": ["192.0.2.7/32", "192.0.2.9/32"],
            "ports": [502],
            "since": datetime(2026, 3, 1, 11, 54, tzinfo=UTC),
            "until": datetime(2026, 3, 1, 11, 59, tzinfo=UTC),
        },
        {
            "networks": ["192.0.2.7/32"],
            "ports": [20_000, 502],
            "since": datetime(2026, 3, 1, 11, 49, tzinfo=UTC),
            "until": datetime(2026, 3, 1, 12, 1, tzinfo=UTC),
        },
    ]


def test_the_same_command_again_makes_nothing_new_and_tells_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings())

    desk.copy()
    desk.now += timedelta(minutes=1)
    desk.copy()

    assert len(desk.rings.asked) == 1
    assert desk.told[0] == desk.told[1]


def test_what_a_process_left_half_made_is_made_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings())
    desk.folder.mkdir()
    for name in (f"{hashlib.sha256(b'k1').hexdigest()[:32]}.pcap", "stray.part"):
        (desk.folder / name).write_bytes(b"half")

    desk.copy()

    assert len(desk.names()) == 2
    assert desk.evidence.kept()[0].bytes == 100


def test_expired_evidence_goes_and_then_the_oldest(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings(300_000), gb=0.001, keep_days=1)

    for number in range(5):
        desk.copy(f"k{number}")
        desk.now += timedelta(hours=1)
    held = {one.key for one in desk.evidence.kept()}
    desk.now += timedelta(days=2)
    desk.copy("later")

    assert held == {"k2", "k3", "k4"}
    assert [one.key for one in desk.evidence.kept()] == ["later"]


def test_one_piece_larger_than_all_room_stays_until_the_next_comes(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings(2_000_000), gb=0.001)

    desk.copy("a")
    desk.now += timedelta(minutes=1)
    desk.copy("b")

    assert [one.key for one in desk.evidence.kept()] == ["b"]


def test_that_there_was_no_packet_is_kept_as_well(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings(0))

    desk.copy()
    (note,) = desk.evidence.kept()

    assert (note.packets, note.notes, note.tools) == (0, ("no source keeps a ring",), {})
    assert desk.told[0][1]["ref"].endswith(".json")
    assert not desk.evidence.probe(HOST).is_applied


def test_probing_says_the_newest_and_changes_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings())
    before = desk.evidence.probe(HOST)

    desk.copy("a")
    state = desk.evidence.probe(HOST)

    assert not before.is_applied
    assert (state.is_applied, state.until) == (True, NOW + timedelta(days=30))
    assert json.loads(json.dumps(state.found)) == state.found
    assert not desk.evidence.probe(FLOW).is_applied


@pytest.mark.parametrize(
    "args",
    [
        {"since": "yesterday"},
        {"since": "2026-03-01T11:00:00"},
        {"since": "2026-02-01T11:00:00Z"},
        {"since": "2026-03-01T12:00:00Z", "until": "2026-03-01T11:00:00Z"},
        {"until": "2027-03-01T12:00:00Z"},
        {"ports": "502;reboot"},
        {"ports": ["99999"]},
        {"ports": list(range(50))},
        {"ports": {"a": 1}},
        {"path": "/etc/passwd"},
    ],
)
def test_arguments_that_are_none_are_refused(args: dict[str, Any], tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings())

    with pytest.raises(Unsafe):
        desk.copy(**args)

    assert desk.rings.asked == []


@pytest.mark.parametrize(
    ("verb", "target", "key"),
    [
        ("deny", HOST, "k"),
        ("copy", Target("ipv4_net", "0.0.0.0/0"), "k"),
        ("copy", Target("ipv4_net", "../../etc"), "k"),
        ("copy", Target("domain_name", "a.example"), "k"),
        ("copy", HOST, ""),
        ("copy", HOST, "../k"),
    ],
)
def test_other_verbs_targets_and_keys_are_refused(
    verb: str, target: Target, key: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, Rings())

    with pytest.raises(Unsafe):
        desk.evidence.apply(Command(verb, target, undo="", until=NOW, key=key))


def test_it_keeps_the_promises_of_an_actuator(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Rings())
    desk.evidence._clock = lambda: datetime.now(UTC)

    check_actuator(desk.evidence, HOST, look=lambda: desk.names() if desk.folder.exists() else [])


def test_a_full_disk_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("no folder")
    desk = Desk(tmp_path, Rings())

    with pytest.raises(TransientError, match="cannot be kept"):
        desk.copy()
