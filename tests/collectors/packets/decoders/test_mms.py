"""MMS against a real substation, objects of IEC 61850 and hostile bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.mms import Mms
from collectors.packets.decoders.s7comm import S7comm
from tests.collectors.packets.decoders.streams import Wire, decoded, session

CAPTURE = "energy/iec61850_mms_and_goose.pcap"

CONNECT = "0300001611e00000077800c1020001c2020001c0010d"
CONFIRM = "0300001611d00778340000c1020001c2020001c0010a"
ASSOCIATE = (
    "030000a702f0800d9e0506130100160102140200023302000134020001c188318185a003800101a27e81040000"
    "0001820400000001a423300f0201010604520100013004060251013010020103060528ca220201300406025101"
    "8802060061473045020101a040603e80020780a107060528ca220203be2f282d020103a028a826800300fa0081"
    "010a82010a830105a416800101810305e100820c03a00000000000000000e110"
)
ASSOCIATED = (
    "0300009202f0800e89050613010016010214020002c17b3179a003800101a272830400000001a5123007800100"
    "810251013007800100810251018802060061523050020101a04b614980020780a107060528ca220203a2030201"
    "00a305a103020100be2e282c020103a027a92580027d0081010a820108830105a416800101810305e100820c03"
    "ee0800000400000001ed18"
)
READ = (
    "0300004802f08001000100613b3039020103a034a032020304a274a42ba129a0273025a023a1211a0e41413145"
    "315130314650324c44301a0f4c4c4e30244252247263625f423032"
)
REFUSED = "0300002202f0800100010061153013020103a00ea10c020304a274a405a10380010a"
REPORT = (
    "0300007302f0800100010061663064020103a05fa35da05ba1058003525054a0528a1a41413143315130314131"
    "4c44302f4c4c4e30247263625f463032840306530086020272830100890800000000000004768406071000000000"
    "a2128301008403030000910848808dd40b851f0a84020240"
)


def tlv(tag: str, *contents: str) -> str:
    inside = "".join(contents)
    size = len(inside) // 2
    return tag + (f"{size:02x}" if size < 128 else f"82{size:04x}") + inside


def text(tag: str, value: str) -> str:
    return tlv(tag, value.encode().hex())


def sent(pdu: str) -> str:
    data = "01000100" + tlv("61", tlv("30", "020103", tlv("a0", pdu)))
    return f"0300{len(data) // 2 + 7:04x}02f080{data}"


def asked(service: str, invoke: str = "07") -> str:
    return sent(tlv("a0", f"0201{invoke}", service))


def answered(service: str, invoke: str = "07") -> str:
    return sent(tlv("a1", f"0201{invoke}", service))


def named(domain: str, item: str) -> str:
    return tlv("30", tlv("a0", tlv("a1", text("1a", domain), text("1a", item))))


def write(*pairs: tuple[str, str]) -> str:
    """Values written to items of one domain."""
    names = [named("LD0", item) for item, _ in pairs]
    return asked(tlv("a5", tlv("a0", *names), tlv("a0", *(value for _, value in pairs))))


OPERATE = write(("CSWI1$CO$Pos$Oper", tlv("a2", "830101", "860103")))


def talk(*pieces: tuple[bool, str]) -> list[dict[str, Any]]:
    line = Wire(Mms(session(server="10.0.0.2:102")))
    found = [one for who, data in pieces for one in line.send(bytes.fromhex(data), who)]
    return [*found, *line.decoder.end()]


def test_a_breaker_that_is_operated_is_a_control_with_its_value() -> None:
    operate, answer = talk((True, OPERATE), (False, answered(tlv("a5", "8100"))))

    assert operate["event.action"] == "mms_operate"
    assert operate["ot.operation"] == "control"
    assert operate["ot.is_command"] is True
    assert operate["ot.unit"] == "LD0"
    assert operate["cw.vendor"]["item"] == "CSWI1$CO$Pos$Oper"
    assert (operate["ot.value"], operate["ot.value_raw"]) == (1, "1,3")
    assert answer["event.outcome"] == "success"
    assert answer["ot.link_id"] == operate["ot.link_id"]


@pytest.mark.parametrize(
    ("item", "action", "operation"),
    [
        ("CSWI1$CO$Pos$SBOw", "mms_select", "select"),
        ("CSWI1$CO$Pos$Cancel", "mms_cancel", "control"),
        ("CSWI1$CO$Pos$Oper$ctlVal", "mms_operate", "control"),
        ("LLN0$BR$rcb_B02$RptEna", "mms_write", "config"),
        ("PTOC1$SG$StrVal", "mms_write", "config"),
        ("GGIO1$ST$Ind1", "mms_write", "write"),
    ],
)
def test_what_an_object_is_called_says_what_is_done(item: str, action: str, operation: str) -> None:
    found = talk((True, write((item, "830100"))))[0]

    assert (found["event.action"], found["ot.operation"]) == (action, operation)
    assert found["ot.is_command"] is True


def test_a_select_by_reading_is_a_command_and_other_reads_are_none() -> None:
    def read(item: str) -> str:
        return asked(tlv("a4", tlv("a1", tlv("a0", named("LD0", item)))))

    assert talk((True, read("CSWI1$CO$Pos$SBO")))[0]["ot.operation"] == "select"
    assert talk((True, read("CSWI1$CO$Pos$Oper")))[0]["ot.is_command"] is False


def test_each_written_object_is_an_event_and_failures_are_named() -> None:
    first, second, answer = talk(
        (True, write(("GGIO1$SP$A", "850105"), ("GGIO1$SP$B", "8705083fc00000"))),
        (False, answered(tlv("a5", "8100", "800103"))),
    )

    assert (first["ot.value"], second["ot.value"]) == (5, 1.5)
    assert first["ot.link_id"] == second["ot.link_id"] == answer["ot.link_id"]
    assert answer["ot.exception"] == "object_access_denied"
    assert answer["cw.vendor"]["failed_items"] == ["2: object_access_denied"]


def test_other_services_say_what_they_are_about() -> None:
    def first(service: str) -> dict[str, Any]:
        return talk((True, asked(service)))[0]

    opened = first(tlv("bf48", tlv("a0", text("19", "COMTRADE/1.cfg")), "810100"))
    assert (opened["event.action"], opened["file.name"]) == ("mms_file_open", "COMTRADE/1.cfg")
    deleted = first(tlv("bf4c", text("19", "a.txt")))
    assert (deleted["event.action"], deleted["ot.is_command"]) == ("mms_file_delete", True)
    names = first(tlv("a1", tlv("a0", "800100"), tlv("a1", text("81", "LD0"))))
    assert names["ot.unit"] == "LD0"
    assert names["cw.vendor"] == {"object_class": "variable"}
    stop = first(tlv("bf29", text("80", "program")))
    assert (stop["event.action"], stop["ot.unit"]) == ("mms_stop", "program")
    domain = first(text("9f24", "LD7"))
    assert (domain["event.action"], domain["ot.unit"]) == ("mms_delete_domain", "LD7")
    data_set = first(tlv("ab", tlv("a1", text("1a", "LD0"), text("1a", "LLN0$ds"))))
    assert data_set["cw.vendor"] == {"item": "LLN0$ds"}
    assert first("bf810000")["event.action"] == "mms_unknown_service"


def test_an_identity_gives_model_and_firmware() -> None:
    answer = talk(
        (True, asked("8200")),
        (False, answered(tlv("a2", text("80", "Maker"), text("81", "R1"), text("82", "4.2")))),
    )[1]

    assert answer["cw.vendor"] == {"vendor": "Maker", "model": "R1", "revision": "4.2"}
    assert answer["ot.firmware.version"] == "4.2"


def test_a_reject_and_an_error_are_joined_and_named() -> None:
    rejected = talk((True, OPERATE), (False, sent(tlv("a4", "800107", "810103"))))[1]
    assert rejected["ot.exception"] == "reject_confirmed_request_3"
    assert "ot.link_id" in rejected
    failed = sent(tlv("a2", "800107", tlv("a2", tlv("a0", "870103"))))
    error = talk((True, OPERATE), (False, failed))[1]
    assert error["ot.exception"] == "object_access_denied"
    assert error["event.action"] == "mms_operate"


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (OPERATE[:28] + "ff" + OPERATE[30:], ""),
        (sent("b0820100"), "are left"),
        (sent("bf2000"), "has no tag"),
        (asked(tlv("a5", tlv("a0", named("LD0", "X")))), "0 values for 1 variables"),
        ("0300000902f0807f00", "session message 127"),
        ("0300000b02f08001000100", "the tag at byte 4 is cut"),
        ("0300000f02f0800100010061023000", ""),
        (sent("a003020107"), "invoke id and a service"),
    ],
)
def test_what_is_wrong_is_said(broken: str, why: str) -> None:
    said = [one.get("event.reason", "") for one in talk((True, broken))]

    assert not why or any(why in one for one in said)


def test_deep_and_wide_structures_have_a_bound() -> None:
    deep = "8500"
    for _ in range(200):
        deep = tlv("a2", deep)
    wide = tlv("a2", *["830101"] * 2_000)

    assert talk((True, write(("A$SP$b", deep))))[0]["event.action"] == "mms_write"
    shown = talk((True, write(("A$SP$b", wide))))[0]["ot.value_raw"]
    assert shown == ",".join(["1"] * 32)


def test_the_decoder_keeps_its_promises() -> None:
    conversation = [
        (True, bytes.fromhex(CONNECT)),
        (False, bytes.fromhex(CONFIRM)),
        (True, bytes.fromhex(ASSOCIATE)),
        (False, bytes.fromhex(ASSOCIATED)),
        (True, bytes.fromhex(READ + OPERATE)),
        (False, bytes.fromhex(REFUSED + REPORT)),
    ]

    check_decoder(Mms, conversation, mutants_each=30)


def test_a_conversation_is_recognised_also_from_its_middle_and_is_not_that_of_s7() -> None:
    for head in (CONNECT, ASSOCIATE, ASSOCIATED, CONNECT + ASSOCIATE, READ, REFUSED, REPORT):
        assert Mms.recognises(bytes.fromhex(head))
        assert not S7comm.recognises(bytes.fromhex(head))


def test_a_real_substation_tells_what_wireshark_sees_in_it(data: Path) -> None:
    found = [one for frame, one in decoded(Mms, data / CAPTURE, 102) if frame]

    actions = Counter(one["event.action"] for one in found)
    # Wireshark knows the 8 messages of the association whose beginning it saw; reports of the
    # others it leaves at the presentation layer.
    assert actions == {
        "mms_associate": 2,
        "mms_get_variable_access_attributes": 2,
        "mms_read": 2,
        "mms_conclude": 2,
        "mms_release": 2,
        "cotp_connection_request": 1,
        "cotp_connection_confirm": 1,
        "mms_information_report": 28,
    }
    assert not [one for one in found if "event.kind" in one or "event.reason" in one]
    refused = [one["ot.exception"] for one in found if "ot.exception" in one]
    assert refused == ["object_non_existent"] * 2
