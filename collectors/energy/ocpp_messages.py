"""One OCPP message: JSON text → fields, answers joined to their calls. Knows nothing of packets.

References:
    OCPP-J 1.6, section 4 (message types, call, result, error).
    OCPP 1.6 edition 2, sections 4, 5 and 6 (operations and their messages).
    OCPP 2.0.1 edition 3, part 2 (messages) and part 4, section 4 (JSON over WebSocket).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from collectors.values import clean, flat, moment, real, scalar, word

OPEN_MAX = 64
"""Calls of one charging station that wait for an answer."""
VALUES_MAX = 64
"""Values of one message that `cw.vendor` keeps."""

Fields = dict[str, Any]

CALL, RESULT, ERROR = 2, 3, 4

READ = ("read", False)
REPORT = ("report", False)
SESSION = ("session", False)
CONFIG = ("config", True)
CONTROL = ("control", True)

ACTIONS: dict[str, tuple[str, bool]] = {
    # From the charging station.
    "Authorize": ("auth", False),
    "BootNotification": SESSION,
    "DataTransfer": REPORT,
    "DiagnosticsStatusNotification": ("diagnostic", False),
    "FirmwareStatusNotification": ("firmware", False),
    "Heartbeat": SESSION,
    "LogStatusNotification": ("diagnostic", False),
    "MeterValues": REPORT,
    "SecurityEventNotification": ("alarm", False),
    "SignCertificate": ("auth", False),
    "SignedFirmwareStatusNotification": ("firmware", False),
    "StartTransaction": REPORT,
    "StatusNotification": REPORT,
    "StopTransaction": REPORT,
    "ClearedChargingLimit": REPORT,
    "Get15118EVCertificate": ("auth", False),
    "GetCertificateStatus": ("auth", False),
    "NotifyChargingLimit": REPORT,
    "NotifyCustomerInformation": REPORT,
    "NotifyDisplayMessages": REPORT,
    "NotifyEVChargingNeeds": REPORT,
    "NotifyEVChargingSchedule": REPORT,
    "NotifyEvent": ("alarm", False),
    "NotifyMonitoringReport": REPORT,
    "NotifyReport": REPORT,
    "PublishFirmwareStatusNotification": ("firmware", False),
    "ReportChargingProfiles": REPORT,
    "ReservationStatusUpdate": REPORT,
    "TransactionEvent": REPORT,
    # From the central system.
    "CancelReservation": CONTROL,
    "CertificateSigned": CONFIG,
    "ChangeAvailability": ("mode_change", True),
    "ChangeConfiguration": CONFIG,
    "ClearCache": CONFIG,
    "ClearChargingProfile": CONTROL,
    "ClearDisplayMessage": CONFIG,
    "ClearVariableMonitoring": CONFIG,
    "CostUpdated": REPORT,
    "CustomerInformation": READ,
    "DeleteCertificate": CONFIG,
    "ExtendedTriggerMessage": READ,
    "GetBaseReport": READ,
    "GetChargingProfiles": READ,
    "GetCompositeSchedule": READ,
    "GetConfiguration": READ,
    "GetDiagnostics": ("file", True),
    "GetDisplayMessages": READ,
    "GetInstalledCertificateIds": READ,
    "GetLocalListVersion": READ,
    "GetLog": ("file", True),
    "GetMonitoringReport": READ,
    "GetReport": READ,
    "GetTransactionStatus": READ,
    "GetVariables": READ,
    "InstallCertificate": CONFIG,
    "PublishFirmware": ("firmware", True),
    "RemoteStartTransaction": CONTROL,
    "RemoteStopTransaction": CONTROL,
    "RequestStartTransaction": CONTROL,
    "RequestStopTransaction": CONTROL,
    "ReserveNow": CONTROL,
    "Reset": ("restart", True),
    "SendLocalList": CONFIG,
    "SetChargingProfile": CONTROL,
    "SetDisplayMessage": CONFIG,
    "SetMonitoringBase": CONFIG,
    "SetMonitoringLevel": CONFIG,
    "SetNetworkProfile": CONFIG,
    "SetVariableMonitoring": CONFIG,
    "SetVariables": CONFIG,
    "SignedUpdateFirmware": ("firmware", True),
    "TriggerMessage": READ,
    "UnlockConnector": CONTROL,
    "UnpublishFirmware": ("firmware", True),
    "UpdateFirmware": ("firmware", True),
}
"""Operation of each action of OCPP 1.6 (with its security extension) and 2.0.1, and whether it can
change what the charging station does."""

# Words of an action begin with a capital; EV is one word.
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_VERBS = {name: "_" + _WORDS.sub("_", name).lower() for name in ACTIONS}

ERRORS = frozenset(
    (
        *("NotImplemented", "NotSupported", "InternalError", "ProtocolError", "SecurityError"),
        *("FormationViolation", "FormatViolation", "PropertyConstraintViolation"),
        *("OccurenceConstraintViolation", "OccurrenceConstraintViolation", "GenericError"),
        *("TypeConstraintViolation", "RpcFrameworkError", "MessageTypeNotSupported"),
    )
)
"""Error codes of both versions, the misspelt one of 1.6 as well."""

REFUSED = frozenset(
    (
        *("Rejected", "Invalid", "Blocked", "Expired", "ConcurrentTx", "NotSupported", "Failed"),
        *("NotImplemented", "UnknownMessageId", "UnknownVendorId", "VersionMismatch", "Unknown"),
        *("NoCredit", "NotAllowedTypeEVSE", "NotAtThisLocation", "NotAtThisTime"),
        *("InvalidCertificate", "RevokedCertificate", "UnlockFailed", "UnknownConnector"),
        *("Faulted", "Occupied", "Unavailable", "OngoingAuthorizedTransaction"),
    )
)
"""Status values of an answer by which a call did not do what was asked."""

_CONNECTOR = ("connectorId", "evse.id", "evseId")
_URLS = ("location", "remoteLocation", "log.remoteLocation", "firmware.location")
_SECRETS = ("authorizationkey", "password", "passphrase", "apn.apnpassword")
"""Keys whose value is a secret (`AuthorizationKey`, `BasicAuthPassword`)."""
_PERSONAL = ("idTag", "parentIdTag", "idToken", "localAuthorizationList")
"""What names a person; of a list only the size is said."""
_LOGIN = re.compile(r"://[^/@\s]{1,256}@")


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A call that waits for its answer."""

    action: str
    link: str
    time_s: float
    shown: Fields


class Exchange:
    """What one charging station and its central system say to each other.

    `charger`: id of the station, the last part of the URL; `version`: `1.6`, `2.0.1` or empty;
    `link`: prefix of `ot.link_id`.
    """

    def __init__(self, charger: str, version: str = "", link: str = "") -> None:
        self._base: Fields = {**_ALWAYS, **({"ot.charger.id": clean(charger)} if charger else {})}
        self._version = version
        self._link = link
        self._open: dict[tuple[bool, str], Asked] = {}

    def read(self, text: bytes, from_charger: bool, time_s: float) -> list[Fields]:
        """Fields of the events of one message; a malformed one is an event as well."""
        try:
            return self._read(msgspec.json.decode(text), from_charger, time_s)
        except RecursionError:
            return [self._unreadable("objects are nested too deep")]
        except (ValueError, msgspec.MsgspecError) as error:
            return [self._unreadable(f"no JSON: {error}")]

    def _read(self, message: Any, from_charger: bool, time_s: float) -> list[Fields]:
        if not isinstance(message, list) or len(message) < 3 or not isinstance(message[1], str):
            return [self._unreadable("no list of type, id and content")]
        match message:
            case [2, ident, str(action), dict(content)]:
                return [self._call(ident, action, content, from_charger, time_s)]
            case [3, ident, dict(content)]:
                return [self._result(ident, content, from_charger, time_s)]
            case [4, ident, str(code), *more]:
                return [self._error(ident, code, more, from_charger, time_s)]
        return [self._unreadable(f"message type {clean(str(message[0]))[:32]} of {len(message)}")]

    def end(self) -> list[Fields]:
        """Commands that nobody answered."""
        left = [
            {
                **asked.shown,
                "event.action": "ocpp_unanswered",
                "event.outcome": "unknown",
                "event.reason": f"no answer to the {asked.action}",
                "ot.is_command": False,
            }
            for asked in self._open.values()
            if asked.shown["ot.is_command"]
        ]
        self._open.clear()
        return left

    def _call(
        self, ident: str, action: str, content: Fields, from_charger: bool, time_s: float
    ) -> Fields:
        operation, is_command = ACTIONS.get(action, ("", False))
        values = flat(content)
        shown: Fields = {
            **self._base,
            "event.action": f"ocpp{_VERBS[action]}" if action in ACTIONS else "ocpp_other",
            "ot.direction": "request",
            "ot.function.code": "2",
            "ot.function.name": clean(action),
            "ot.is_command": is_command and not from_charger,
            "ot.link_id": clean(f"{self._link}{'c' if from_charger else 's'}.{ident}"),
        }
        if operation:
            shown["ot.operation"] = operation
        connector = _first(values, _CONNECTOR)
        if connector:
            shown["ot.charger.connector"] = connector
        fields = {**shown, **_content(action, content, values)}
        if is_command and from_charger:
            _say(fields, "a charging station does not send this")
        fields["cw.vendor"] = self._vendor(values, from_charger)
        key = (from_charger, ident)
        if key in self._open:
            _say(fields, "a message id that is in use")
        elif len(self._open) >= OPEN_MAX:
            oldest = next(iter(self._open))
            _say(fields, f"{self._open.pop(oldest).action} given up unanswered")
        self._open[key] = Asked(clean(action), shown["ot.link_id"], time_s, shown)
        return fields

    def _answer(self, ident: str, from_charger: bool, time_s: float) -> Fields:
        asked = self._open.pop((not from_charger, ident), None)
        if asked is None:
            return {
                **self._base,
                "event.action": "ocpp_answer",
                "event.reason": "no call was seen for this answer",
                "ot.direction": "response",
                "ot.is_command": False,
            }
        fields = {**asked.shown, "ot.direction": "response", "ot.is_command": False}
        if time_s >= asked.time_s:
            fields["event.duration"] = int((time_s - asked.time_s) * 1e9)
        return fields

    def _result(self, ident: str, content: Fields, from_charger: bool, time_s: float) -> Fields:
        fields = self._answer(ident, from_charger, time_s)
        values = flat(content)
        status = _first(values, ("status", "idTagInfo.status", "idTokenInfo.status"))
        fields["ot.function.code"] = "3"
        fields["event.outcome"] = "failure" if status in REFUSED else "success"
        if status in REFUSED:
            fields["ot.exception"] = status
        fields["cw.vendor"] = self._vendor(values, from_charger)
        return fields

    def _error(
        self, ident: str, code: str, more: Sequence[Any], from_charger: bool, time_s: float
    ) -> Fields:
        fields = self._answer(ident, from_charger, time_s)
        fields["ot.function.code"] = "4"
        fields["event.outcome"] = "failure"
        fields["ot.exception"] = clean(code)
        if more and isinstance(more[0], str) and more[0]:
            _say(fields, clean(more[0])[:512])
        if code not in ERRORS:
            _say(fields, "an error code that OCPP does not have")
        fields["cw.vendor"] = self._vendor({}, from_charger)
        return fields

    def _vendor(self, values: Mapping[str, Any], from_charger: bool) -> Fields:
        vendor: Fields = {"sender": "charger" if from_charger else "central_system"}
        if self._version:
            vendor["version"] = self._version
        is_secret = any(str(value).lower().endswith(_SECRETS) for value in values.values())
        for key, value in list(values.items())[:VALUES_MAX]:
            if key.endswith(_PERSONAL):
                continue
            hidden = key.lower().endswith(_SECRETS) or (is_secret and key.endswith("value"))
            vendor[key] = "***" if hidden else _shown(value)
        return vendor

    def _unreadable(self, why: str) -> Fields:
        return {
            **self._base,
            "event.kind": "pipeline_error",
            "event.action": "unreadable",
            "event.outcome": "failure",
            "event.reason": clean(why),
        }


_ALWAYS: Fields = {
    "network.protocol": "ocpp",
    "event.dataset": "cityward.ocpp",
    "event.category": ["process_control"],
    "cw.logsource.category": "ot_protocol",
    "cw.logsource.service": "ocpp",
}


def looks_like_call(text: bytes) -> bool:
    """True for `[2,"id","Action",{…}]` with an action of OCPP, whole or only its beginning."""
    head = text[:256].decode("utf-8", "replace").replace(" ", "")
    if not head.startswith('[2,"'):
        return False
    parts = head.split('"', 4)
    return len(parts) > 3 and parts[2] == "," and parts[3] in ACTIONS


def _content(action: str, content: Fields, values: Mapping[str, Any]) -> Fields:
    """Fields that only some actions have."""
    fields: Fields = {}
    subject = word(content.get("idTag")) or word(_get(content, "idToken", "idToken"))
    if subject:
        fields["phys.subject"] = subject
    url = _first(values, _URLS)
    if url:
        fields["url.original"] = _without_login(url)
        host = _host(url)
        if host:
            fields["url.domain"] = host
    if action in ("MeterValues", "TransactionEvent"):
        fields |= _metered(content)
    if action == "BootNotification":
        version = word(content.get("firmwareVersion")) or word(
            _get(content, "chargingStation", "firmwareVersion")
        )
        if version:
            fields["ot.firmware.version"] = version
    if action == "StatusNotification":
        state = word(content.get("status")) or word(content.get("connectorStatus"))
        if state:
            fields["phys.state"] = state.lower()
        fault = word(content.get("errorCode"))
        if state == "Faulted" or (fault and fault != "NoError"):
            fields["event.outcome"] = "failure"
            fields["ot.exception"] = fault or "Faulted"
    if action == "SecurityEventNotification" and (kind := word(content.get("type"))):
        fields["event.code"] = kind
    if action == "SendLocalList" and isinstance(content.get("localAuthorizationList"), list):
        fields["ot.point.count"] = len(content["localAuthorizationList"])
    if action == "ChangeConfiguration" and (key := word(content.get("key"))):
        fields["ot.point.tag"] = key
    if action == "SetVariables":
        first = _get(content, "setVariableData", 0)
        key = word(_get(first, "variable", "name"))
        if key:
            fields["ot.point.tag"] = key
    return fields


def _metered(content: Fields) -> Fields:
    """The first sampled value; a station may send many."""
    sample = _get(content, "meterValue", 0, "sampledValue", 0)
    if not isinstance(sample, dict):
        return {}
    value = real(sample.get("value"))
    if value is None:
        return {}
    unit = word(sample.get("unit")) or word(_get(sample, "unitOfMeasure", "unit"))
    measured = word(sample.get("measurand")) or "Energy.Active.Import.Register"
    fields: Fields = {"ot.value": value, "ot.point.type": measured}
    fields["ot.unit_of_measure"] = _UCUM.get(unit or "Wh", unit or "Wh")
    when = moment(_get(content, "meterValue", 0, "timestamp"))
    return {**fields, "event.start": when} if when else fields


_UCUM = {"Wh": "W.h", "kWh": "kW.h", "varh": "var.h", "kvarh": "kvar.h", "Percent": "%"}
"""Units of OCPP that UCUM writes otherwise."""


def _get(part: Any, *path: str | int) -> Any:
    for step in path:
        if isinstance(part, dict) and isinstance(step, str):
            part = part.get(step)
        elif isinstance(part, list) and isinstance(step, int) and step < len(part):
            part = part[step]
        else:
            return None
    return part


def _first(values: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        found = word(values.get(name))
        if found:
            return found
    return ""


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _shown(value: Any) -> str | int | float | bool:
    """A value without secrets and long lists; a list of objects is JSON."""
    found = scalar(value)
    if not isinstance(found, str):
        return found
    if found[:1] == "[" and any(name in found.lower() for name in _SECRETS):
        return "***"
    return _without_login(found[:512])


def _without_login(url: str) -> str:
    return _LOGIN.sub("://***@", url)


def _say(fields: Fields, why: str) -> None:
    fields["event.reason"] = f"{fields['event.reason']}; {why}" if "event.reason" in fields else why
