"""Windows events, as Winlogbeat, NXLog, Sysmon exporters and Windows itself (XML) write them.

Send: Winlogbeat with `output.file` or Logstash, NXLog with `im_msvistalog` and `to_json()` by
syslog, or a file of events (`reader = "file"`, `collector = "windows"`). For processes and
connections install Sysmon with a configuration of your own choice.

Understood: Winlogbeat's `winlog.*`, flat JSON with the native names, `Event.System` and
`Event.EventData`, rendered XML. The native names that SigmaHQ's rules use (`Image`, `EventID`,
`TargetObject` …) are kept under `cw.vendor`; the log source is `windows`, with the category of
Sysmon's event and the service of the channel. Logins, processes, connections, accounts, files and
DNS questions get their common fields.

Not understood: EVTX files (convert them first, for example with evtx_dump), the words of messages.

References:
    Microsoft, "Windows security audit events"; Sysinternals, Sysmon 15; SigmaHQ, taxonomy; Elastic,
    Winlogbeat fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from html import unescape
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import Envelope, enveloped
from collectors.values import (
    Table,
    address,
    clean,
    flat,
    lower,
    moment,
    port,
    read_json,
    scalar,
    sort_in,
    text,
    whole,
    word,
)

WINDOWS = LogSource(product="windows")


def _pid(value: Any) -> int | None:
    """A process id, in decimals or in hexadecimal."""
    if isinstance(value, str) and value[:2] == "0x" and len(value) <= 18:
        try:
            return int(value, 16)
        except ValueError:
            return None
    return whole(value)


def _named(value: Any) -> str | None:
    """Text; a hyphen stands for nothing."""
    return text(value) if value != "-" else None


TABLE: Table = {
    "Computer": ("host.name", _named),
    "Hostname": ("host.name", _named),
    "Provider_Name": ("event.provider", _named),
    "SourceName": ("event.provider", _named),
    "EventID": ("event.code", word),
    "EventRecordID": ("event.sequence", whole),
    "RecordNumber": ("event.sequence", whole),
    "Message": ("message", text),
    "Image": ("process.executable", _named),
    "NewProcessName": ("process.executable", _named),
    "ProcessName": ("process.executable", _named),
    "CommandLine": ("process.command_line", _named),
    "ProcessId": ("process.pid", _pid),
    "NewProcessId": ("process.pid", _pid),
    "CurrentDirectory": ("process.working_directory", _named),
    "ParentImage": ("process.parent.executable", _named),
    "ParentProcessName": ("process.parent.executable", _named),
    "ParentCommandLine": ("process.parent.command_line", _named),
    "TargetFilename": ("file.path", _named),
    "SourceIp": ("source.ip", address),
    "IpAddress": ("source.ip", address),
    "SourcePort": ("source.port", port),
    "IpPort": ("source.port", port),
    "WorkstationName": ("source.domain", _named),
    "SourceHostname": ("source.domain", _named),
    "DestinationIp": ("destination.ip", address),
    "DestinationPort": ("destination.port", port),
    "DestinationHostname": ("destination.domain", _named),
    "Protocol": ("network.transport", lower),
    "QueryName": ("dns.question.name", _named),
    "TargetUserName": ("user.name", _named),
    "TargetDomainName": ("user.domain", _named),
}
"""Native names that have a field of ours; they keep their native name, too, for the rules."""

# fmt: off
SYSMON = {
    1: "process_creation", 2: "file_change", 3: "network_connection", 4: "sysmon_status",
    5: "process_termination", 6: "driver_load", 7: "image_load", 8: "create_remote_thread",
    9: "raw_access_thread", 10: "process_access", 11: "file_event", 12: "registry_event",
    13: "registry_set", 14: "registry_rename", 15: "create_stream_hash", 16: "sysmon_status",
    17: "pipe_created", 18: "pipe_created", 19: "wmi_event", 20: "wmi_event", 21: "wmi_event",
    22: "dns_query", 23: "file_delete", 25: "process_tampering", 26: "file_delete",
    27: "file_block_executable", 28: "file_block_shredding", 29: "file_executable_detected",
    255: "sysmon_error",
}
"""Category of Sigma by Sysmon's event id; SigmaHQ, "Log sources"."""
REGISTRY = {
    "CreateKey": "registry_add", "DeleteKey": "registry_delete", "DeleteValue": "registry_delete",
}
"""The same, for Sysmon's 12, by what it says happened."""
CATEGORIES = {
    ("security", 4688): "process_creation",
    ("powershell", 4103): "ps_module", ("powershell", 4104): "ps_script",
    ("powershell-classic", 400): "ps_classic_start",
    ("powershell-classic", 600): "ps_classic_provider_start",
    ("powershell-classic", 800): "ps_classic_script",
}
SERVICES = {
    "Security": "security", "System": "system", "Application": "application",
    "Microsoft-Windows-Sysmon/Operational": "sysmon", "Windows PowerShell": "powershell-classic",
    "Microsoft-Windows-PowerShell/Operational": "powershell",
    "PowerShellCore/Operational": "powershell", "DNS Server": "dns-server",
    "Microsoft-Windows-TaskScheduler/Operational": "taskscheduler",
    "Microsoft-Windows-WMI-Activity/Operational": "wmi",
    "Microsoft-Windows-Windows Defender/Operational": "windefend",
    "Microsoft-Windows-NTLM/Operational": "ntlm",
    "Microsoft-Windows-Bits-Client/Operational": "bits-client",
    "Microsoft-Windows-CodeIntegrity/Operational": "codeintegrity-operational",
    "Microsoft-Windows-DriverFrameworks-UserMode/Operational": "driver-framework",
    "Microsoft-Windows-Windows Firewall With Advanced Security/Firewall": "firewall-as",
    "Microsoft-Windows-TerminalServices-LocalSessionManager/Operational":
        "terminalservices-localsessionmanager",
    "Microsoft-Windows-AppLocker/EXE and DLL": "applocker",
    "Microsoft-Windows-AppLocker/MSI and Script": "applocker",
}
"""Service of Sigma by channel."""
ACTIONS: dict[tuple[str, int], tuple[str, str, str]] = {
    ("security", 4624): ("login", "success", "authentication"),
    ("security", 4625): ("login", "failure", "authentication"),
    ("security", 4634): ("logout", "", "authentication"),
    ("security", 4647): ("logout", "", "authentication"),
    ("security", 4648): ("login_as_other", "unknown", "authentication"),
    ("security", 4672): ("privileges_assigned", "success", "iam"),
    ("security", 4688): ("process_creation", "success", "process"),
    ("security", 4697): ("service_installed", "success", "configuration"),
    ("security", 4698): ("task_created", "success", "configuration"),
    ("security", 4719): ("audit_policy_changed", "success", "configuration"),
    ("security", 4720): ("account_created", "success", "iam"),
    ("security", 4726): ("account_deleted", "success", "iam"),
    ("security", 4728): ("group_member_added", "success", "iam"),
    ("security", 4732): ("group_member_added", "success", "iam"),
    ("security", 4740): ("account_locked", "success", "iam"),
    ("security", 4756): ("group_member_added", "success", "iam"),
    ("security", 4768): ("kerberos_ticket", "", "authentication"),
    ("security", 4769): ("kerberos_ticket", "", "authentication"),
    ("security", 4771): ("login", "failure", "authentication"),
    ("security", 4776): ("ntlm_login", "", "authentication"),
    ("security", 1102): ("log_cleared", "success", "configuration"),
    ("security", 5140): ("share_accessed", "success", "file"),
    ("security", 5145): ("share_accessed", "", "file"),
    ("security", 5156): ("packet_allowed", "", "network"),
    ("security", 5157): ("packet_denied", "", "network"),
    ("system", 104): ("log_cleared", "success", "configuration"),
    ("system", 7045): ("service_installed", "success", "configuration"),
}
"""Action, outcome and category by service and event id."""
# fmt: on
_KINDS = {"process": "process", "image": "process", "network": "network", "dns": "network"}
_KINDS |= {"file": "file", "registry": "registry", "driver": "driver"}
_STATUS = frozenset(("0x0", "0", "S_OK"))
_HASH = re.compile(r"\b(SHA256|MD5)=([0-9A-Fa-f]{32,64})\b")
_XML = re.compile(
    r"<(?P<tag>\w{1,40})(?P<attributes>(?: [\w:]{1,40}=(?:\"[^\"]*\"|'[^']*')){0,8}) ?/?>"
    r"(?P<text>[^<]*)"
)
_ATTRIBUTE = re.compile(r"(\w{1,40})=[\"']([^\"']*)[\"']")
_XML_MARK = re.compile(rb"^(?:- ?)?<Event xmlns=[\"']http://schemas.microsoft.com/win/")
DATA_MAX = 400
"""Values of one event that are kept; the widest known has about 60."""

Native = dict[str, Any]


def looks_like_windows(head: bytes) -> bool:
    """The first line is a Windows event, as JSON or XML."""
    line = head.lstrip(b"\xef\xbb\xbf \r\n").partition(b"\n")[0]
    if _XML_MARK.match(line):
        return True
    if line[:1] != b"{":
        return False
    named = b'"EventID"' in line and (b'"Channel"' in line or b'"SourceName"' in line)
    return named or (b'"winlog"' in line and b'"event_id"' in line)


@collector(WINDOWS, looks_like=looks_like_windows, strength=72)
def windows(records: Iterable[Record]) -> Iterator[Event]:
    """Read events, one a line."""
    for record in records:
        around = Envelope(record.received, "", time_source="collector")
        try:
            yield _read(record.data, around, record, 0)
        except ValueError as error:
            yield Event.malformed(record, WINDOWS, why=str(error))


def read_windows(around: Envelope, record: Record, number: int) -> Event | None:
    """Read an event that came through syslog; None if the message is another one."""
    start = around.message.find("{")
    if not 0 <= start <= 64 or "EventID" not in around.message:
        return None
    try:
        return _read(around.message[start:].encode("utf-8", "replace"), around, record, number)
    except ValueError:
        return None


def _read(data: bytes, around: Envelope, record: Record, number: int) -> Event:
    if data.lstrip(b"\xef\xbb\xbf- ")[:6] == b"<Event":
        native = _of_xml(data.decode("utf-8", "backslashreplace"))
    else:
        native = _of_json(read_json(data.lstrip(b"\xef\xbb\xbf")))
    code = whole(native.get("EventID"))
    if code is None:
        raise ValueError("no event of Windows: it has no EventID")
    service = SERVICES.get(str(native.get("Channel", "")), "")
    category = SYSMON.get(code, "") if service == "sysmon" else CATEGORIES.get((service, code), "")
    if category == "registry_event":
        category = REGISTRY.get(str(native.get("EventType", "")), category)
    for name, twin in (("Image", "NewProcessName"), ("ParentImage", "ParentProcessName")):
        if category == "process_creation" and twin in native:
            native.setdefault(name, native[twin])
    fields = _fields(native, code, service, category)
    time = _time(native)
    if time is not None:
        fields["cw.time_source"] = "source"
    fields["cw.vendor"] = native
    source = LogSource(category=category, product="windows", service=service)
    return Event(time or around.time, source, enveloped(around, fields), record, number)


def _fields(native: Native, code: int, service: str, category: str) -> dict[str, Any]:
    action, outcome, kind = ACTIONS.get((service, code), (category, "", ""))
    found, _ = sort_in(native, TABLE)
    fields: dict[str, Any] = {
        "event.action": action or f"windows_{code}",
        "event.category": [kind or _KINDS.get(category.partition("_")[0], "host")],
        "event.dataset": f"windows.{service or 'event'}",
        **found,
    }
    if action in ("kerberos_ticket", "ntlm_login"):
        outcome = "success" if native.get("Status") in _STATUS else "failure"
    if outcome:
        fields["event.outcome"] = outcome
    if "user.name" not in fields:
        user = _named(native.get("User")) or _named(native.get("SubjectUserName"))
        user = user or _named(native.get("AccountName"))
        if user:
            domain, _, name = user.rpartition("\\")
            fields["user.name"] = name or user
            if domain := domain or _named(native.get("SubjectDomainName")) or "":
                fields["user.domain"] = domain
    for name in ("process", "process.parent"):
        if executable := fields.get(f"{name}.executable"):
            fields[f"{name}.name"] = executable.rpartition("\\")[2] or executable
    if isinstance(hashes := native.get("Hashes"), str):
        for algorithm, digest in _HASH.findall(hashes):
            fields[f"file.hash.{algorithm.lower()}"] = digest.lower()
    return fields


def _time(native: Native) -> datetime | None:
    """Sysmon's own UTC time, the system's, the exporter's; one with a zone before one without."""
    for name in ("UtcTime", "TimeCreated", "@timestamp", "EventTime"):
        value = native.get(name)
        if isinstance(value, str) and (found := moment(value[:19] + value[19:].replace(" ", ""))):
            return found
    return None


def _of_json(line: Mapping[str, Any]) -> Native:
    """The native names and values of any of the forms."""
    if isinstance(beat := line.get("winlog"), dict):
        return _of_beat(line, beat)
    if isinstance(event := line.get("Event"), dict):
        return _of_event(event)
    return {name: scalar(value) for name, value in _wide(line) if value is not None}


def _wide(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for number, (name, value) in enumerate(line.items()):
        if number >= DATA_MAX:
            return
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", one) for key, one in flat(value).items())
        else:
            yield clean(name), value


def _of_beat(line: Mapping[str, Any], beat: Mapping[str, Any]) -> Native:
    native: Native = {}
    for part in ("event_data", "user_data"):
        if isinstance(data := beat.get(part), dict):
            native.update({name: scalar(value) for name, value in _wide(data)})
    names = {
        "channel": "Channel", "event_id": "EventID", "computer_name": "Computer", "task": "Task",
        "record_id": "EventRecordID", "provider_name": "Provider_Name", "opcode": "Opcode",
        "version": "Version", "keywords": "Keywords", "provider_guid": "Provider_Guid",
    }  # fmt: skip
    native.update({to: scalar(beat[name]) for name, to in names.items() if name in beat})
    for name, to in (("@timestamp", "TimeCreated"), ("message", "Message")):
        if isinstance(value := line.get(name), str):
            native[to] = clean(value)
    return native


def _of_event(event: Mapping[str, Any]) -> Native:
    """`System` and `EventData`; what stands in attributes goes by the name of both."""
    native: Native = {}
    system = event.get("System")
    for name, value in (system if isinstance(system, dict) else {}).items():
        if not isinstance(value, dict):
            native[clean(name)] = scalar(value)
            continue
        inner = value.get("#attributes", value)
        for key, one in (inner if isinstance(inner, dict) else {}).items():
            plain = key.lstrip("@#")
            native["TimeCreated" if plain == "SystemTime" else clean(f"{name}_{plain}")] = scalar(
                one
            )
        if "#text" in value:
            native[clean(name)] = scalar(value["#text"])
    for part in ("EventData", "UserData"):
        data = event.get(part)
        if part == "UserData" and isinstance(data, dict):
            data = next((one for one in data.values() if isinstance(one, dict)), {})
        if isinstance(data, dict) and isinstance(data.get("Data"), list):
            data = {
                str(one.get("@Name") or one.get("Name")): one.get("#text")
                for one in data["Data"]
                if isinstance(one, dict)
            }
        for name, value in (data if isinstance(data, dict) else {}).items():
            if name != "#attributes" and value is not None:
                native[clean(name.replace(" ", ""))] = scalar(value)
    return native


def _of_xml(document: str) -> Native:
    """Rendered XML, by its tags: no entity is resolved but those of text."""
    native: Native = {}
    for number, found in enumerate(_XML.finditer(document)):
        if number >= DATA_MAX:
            break
        tag, value = found["tag"], unescape(found["text"].strip())
        attributes = dict(_ATTRIBUTE.findall(found["attributes"]))
        if tag == "Data" and "Name" in attributes:
            native[clean(attributes["Name"].replace(" ", ""))] = clean(value)
        elif tag == "TimeCreated":
            native["TimeCreated"] = clean(attributes.get("SystemTime", ""))
        elif value:
            native.setdefault(tag, clean(value))
        else:
            native.update(
                {f"{tag}_{name}": clean(one) for name, one in attributes.items() if tag != "Event"}
            )
    return native
