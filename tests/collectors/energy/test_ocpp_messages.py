"""OCPP messages of both versions, without a WebSocket around them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.fields import faults
from collectors.energy.ocpp_messages import ACTIONS, OPEN_MAX, Exchange, looks_like_call


def read(*message: Any, from_charger: bool, exchange: Exchange | None = None) -> dict[str, Any]:
    exchange = exchange or Exchange("CP-1", "2.0.1")
    (found,) = exchange.read(json.dumps(message).encode(), from_charger, 0.0)
    assert faults(found) == []
    return found


def test_the_verbs_are_words() -> None:
    found = read(2, "1", "NotifyEVChargingNeeds", {"evseId": 3}, from_charger=True)

    assert found["event.action"] == "ocpp_notify_ev_charging_needs"
    assert found["ot.charger.connector"] == "3"


@pytest.mark.parametrize(
    ("action", "operation"),
    [
        *(("RemoteStartTransaction", "control"), ("RemoteStopTransaction", "control")),
        *(("Reset", "restart"), ("UnlockConnector", "control"), ("SetVariables", "config")),
        *(("UpdateFirmware", "firmware"), ("SetChargingProfile", "control")),
        *(("ChangeAvailability", "mode_change"), ("ClearCache", "config"), ("GetLog", "file")),
        *(("SendLocalList", "config"), ("GetDiagnostics", "file")),
    ],
)
def test_what_a_central_system_orders_is_a_command(action: str, operation: str) -> None:
    found = read(2, "1", action, {}, from_charger=False)

    assert (found["ot.is_command"], found["ot.operation"]) == (True, operation)


def test_an_order_that_a_station_gives_is_odd_and_no_command() -> None:
    found = read(2, "1", "Reset", {"type": "Hard"}, from_charger=True)

    assert found["ot.is_command"] is False
    assert found["event.reason"] == "a charging station does not send this"


def test_a_token_of_2_0_1_is_the_subject_and_nowhere_else() -> None:
    token = {"idToken": {"idToken": "04DEADBEEF", "type": "ISO14443"}}

    found = read(2, "1", "Authorize", token, from_charger=True)

    assert found["phys.subject"] == "04DEADBEEF"
    assert "04DEADBEEF" not in repr(found["cw.vendor"])


def test_a_password_in_variables_and_a_list_of_tags_are_not_kept() -> None:
    variables = [
        {
            "component": {"name": "SecurityCtrlr"},
            "variable": {"name": "BasicAuthPassword"},
            "attributeValue": "hunter2-hunter2",
        }
    ]
    tags = [{"idTag": f"TAG{number}"} for number in range(40)]

    changed = read(2, "1", "SetVariables", {"setVariableData": variables}, from_charger=False)
    listed = read(2, "2", "SendLocalList", {"localAuthorizationList": tags}, from_charger=False)

    assert changed["ot.point.tag"] == "BasicAuthPassword"
    assert "hunter2" not in repr(changed)
    assert listed["ot.point.count"] == 40
    assert "TAG1" not in repr(listed)


def test_a_metered_value_of_2_0_1_has_its_unit() -> None:
    sample = {"value": 71.0, "measurand": "SoC", "unitOfMeasure": {"unit": "Percent"}}
    content = {"evseId": 1, "meterValue": [{"timestamp": "x", "sampledValue": [sample]}]}

    found = read(2, "1", "MeterValues", content, from_charger=True)

    assert (found["ot.value"], found["ot.unit_of_measure"]) == (71.0, "%")
    assert found["ot.point.type"] == "SoC"


def test_a_fault_of_a_connector_is_said() -> None:
    content = {"connectorId": 2, "errorCode": "GroundFailure", "status": "Faulted"}

    found = read(2, "1", "StatusNotification", content, from_charger=True)

    assert (found["phys.state"], found["ot.exception"]) == ("faulted", "GroundFailure")
    assert found["ot.charger.connector"] == "2"


def test_an_answer_without_a_call_is_said_and_open_calls_are_bounded() -> None:
    exchange = Exchange("CP-1")
    answer = read(3, "9", {}, from_charger=True, exchange=exchange)
    calls = [
        read(2, str(number), "Reset", {}, from_charger=False, exchange=exchange)
        for number in range(OPEN_MAX + 1)
    ]

    assert answer["event.reason"] == "no call was seen for this answer"
    assert calls[-1]["event.reason"] == "Reset given up unanswered"
    assert len(exchange.end()) == OPEN_MAX


def test_a_call_is_known_by_its_beginning() -> None:
    assert looks_like_call(b'[2, "7", "BootNotification", {"charg')
    assert not looks_like_call(b'[2,"7","Something",{}]')
    assert not looks_like_call(b'{"jsonrpc":"2.0"}')


@given(
    st.sampled_from((2, 3, 4, 9)),
    st.sampled_from((*sorted(ACTIONS), "Other")),
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ("idTag", "status", "meterValue", "value", "location", "evse", "id")
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=9,
    ),
)
def test_nothing_that_is_json_is_too_odd(kind: int, action: str, content: Any) -> None:
    exchange = Exchange("CP-1")

    for message in ([kind, "1", action, content], [kind, "1", content], content):
        for found in exchange.read(json.dumps(message).encode(), True, 0.0):
            assert faults(found) == []


def test_objects_nested_as_deep_as_the_parser_goes_are_no_exception():
    for depth in range(900, 1_010):
        nested = b'{"a":' * depth + b"1" + b"}" * depth

        assert Exchange("x").read(b'[2,"1","Authorize",{"a":' + nested + b"}]", True, 0.0)
