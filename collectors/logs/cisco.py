"""Cisco: ASA and Firepower firewalls (`%ASA-6-302013:`), routers and switches (`%SYS-5-CONFIG_I:`).

Send: ASA: `logging enable`, `logging trap informational`, `logging host inside` and the node's
address. IOS: `logging host` and the address, `login on-failure log`, `login on-success log`. A
syslog reader (`reader = "syslog_udp"`) knows such lines by itself; for a file write
`collector = "cisco"`.

Understood: ASA, FTD, PIX and FWSM: connections, refused packets, translations, logins (VPN, AAA,
management), commands, threat detection, botnet filter. IOS and NX-OS: logins, configuration,
links, access lists, port security, IPS. Severity and code of every message.

Not understood: the words of other messages; they are kept with their code and severity. Names of
time zones: the time is taken as UTC.

References:
    Cisco, "Secure Firewall ASA Series Syslog Messages"; Cisco, "System Message Guide" of IOS XE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import enveloped
from collectors.logs.marked import around_mark, most_lines, read_marked
from collectors.values import address, clean, count, mac, port

CISCO = LogSource(product="cisco")

_MARK = re.compile(
    rb"%(?:(ASA|FTD|PIX|FWSM)-(?:[a-z]{1,12}-)?([0-7])-(\d{6}):? "
    rb"|([A-Z][A-Z0-9_]{1,31}(?:-[A-Z][A-Z0-9_]{0,31}){0,2})-([0-7])-([A-Z][A-Z0-9_]{1,40}): ?)"
)
MESSAGE_MAX = 4_096
"""Characters of a message that are read; syslog of Cisco has at most 1 024."""


class Says(msgspec.Struct, frozen=True):
    """What a message of a code means."""

    action: str
    outcome: str = ""
    verdict: str = ""
    """`allowed` or `denied`."""
    category: str = "network"
    source: str = ""
    """Category of the log source."""
    kind: str = ""


_REFUSED = Says("packet_denied", verdict="denied", source="firewall")
_STARTED = Says("connection_started", verdict="allowed", source="firewall")
_ENDED = Says("connection_ended", source="firewall")
_TRANSLATED = Says("address_translation", source="firewall")
_VPN_OK = Says("vpn_login", "success", category="authentication", source="remote_access")
_VPN_NO = Says("vpn_login", "failure", category="authentication", source="remote_access")
_VPN_OUT = Says("vpn_logout", category="authentication", source="remote_access")
_VPN = Says("vpn_log", category="network", source="remote_access")
_IN = Says("device_login", "success", category="authentication", source="edge_device")
_NO = Says("device_login", "failure", category="authentication", source="edge_device")
_OUT = Says("device_logout", category="authentication", source="edge_device")
_LOCKED = Says("account_locked", category="authentication", source="edge_device")
_COMMAND = Says("device_command", category="configuration", source="edge_device")
_CONFIG = Says("device_config", category="configuration", source="edge_device")
_ACCOUNT = Says("account_changed", category="iam", source="edge_device")
_LINK = Says("link_state")
_ALERT = Says("threat_detected", category="intrusion_detection", kind="alert")
_ALERT_REFUSED = Says("threat_denied", "", "denied", "intrusion_detection", kind="alert")
_WEB = Says("web_access", verdict="allowed", category="web")
_WEB_NO = Says("web_access", verdict="denied", category="web")
_RESTART = Says("device_restart", source="edge_device")
_LOG = Says("log")

# fmt: off
ASA: dict[str, Says] = {
    **dict.fromkeys(
        ("106001", "106002", "106006", "106007", "106010", "106011", "106012", "106014", "106015",
         "106018", "106023", "106027", "108004", "201010", "209005", "313001",
         "313004", "313005", "313008", "313009", "410001", "418001", "421001", "500003", "500004",
         "710003", "710004", "710005"), _REFUSED),
    **dict.fromkeys(("302013", "302015", "302017", "302020", "302022", "302024", "302303",
                     "710001", "710002"), _STARTED),
    **dict.fromkeys(("302014", "302016", "302018", "302021", "302023", "302025", "302304"), _ENDED),
    **dict.fromkeys(("305009", "305010", "305011", "305012"), _TRANSLATED),
    **dict.fromkeys(("106016", "106017", "106020", "106021", "106022", "338004", "338006", "338008",
                     "338204", "401004", "420002", "420003", "434002", "434004"), _ALERT_REFUSED),
    **dict.fromkeys(("338001", "338002", "338003", "338005", "338007", "338201", "338202",
                     "338203", "405001", "405003", "419002", "733100", "733101", "733102",
                     "733103", "733104", "733105"), _ALERT),
    **dict.fromkeys(("113004", "113012", "113039", "716001", "716038", "722022", "722033"),
                    _VPN_OK),
    **dict.fromkeys(("113005", "113015", "716039", "713167", "713198"), _VPN_NO),
    **dict.fromkeys(("113019", "716002", "722023", "722037"), _VPN_OUT),
    **dict.fromkeys(("605005", "611101"), _IN),
    **dict.fromkeys(("605004", "611102", "308001", "315011"), _NO),
    **dict.fromkeys(("611103",), _OUT),
    **dict.fromkeys(("113006", "113007"), _LOCKED),
    **dict.fromkeys(("111008", "111009", "111010"), _COMMAND),
    **dict.fromkeys(("111001", "111002", "111003", "111004", "111005", "111007"), _CONFIG),
    **dict.fromkeys(("502101", "502102", "502103"), _ACCOUNT),
    **dict.fromkeys(("411001", "411002", "411003", "411004", "105005", "105009", "105043"), _LINK),
    "304001": _WEB, "304002": _WEB_NO,
}
"""By message id."""
ASA_GROUPS = {"713": _VPN, "714": _VPN, "716": _VPN, "722": _VPN, "725": _VPN, "400": _ALERT}
"""By the first digits of the others."""
IOS: dict[str, Says] = {
    "SEC_LOGIN-LOGIN_FAILED": _NO, "SEC_LOGIN-LOGIN_SUCCESS": _IN,
    "SEC_LOGIN-QUIET_MODE_ON": msgspec.structs.replace(_ALERT, action="login_blocked"),
    "SSH-SSH2_USERAUTH": _IN, "SSH-SSH2_SESSION": Says("ssh_connection"),
    "SSH-SSH2_CLOSE": Says("ssh_disconnect"), "LOGIN-LOGIN_FAILED": _NO,
    "SYS-LOGOUT": _OUT, "SYS-CONFIG_I": _CONFIG,
    "VSHD-VSHD_SYSLOG_CONFIG_I": _CONFIG,
    "PARSER-CFGLOG_LOGGEDCMD": _COMMAND, "SYS-RESTART": _RESTART, "SYS-RELOAD": _RESTART,
    "LINK-UPDOWN": _LINK, "LINK-CHANGED": _LINK, "LINEPROTO-UPDOWN": _LINK,
    "SEC-IPACCESSLOGP": _LOG, "SEC-IPACCESSLOGDP": _LOG, "SEC-IPACCESSLOGNP": _LOG,
    "SEC-IPACCESSLOGS": _LOG, "SEC-IPACCESSLOGRP": _LOG, "SEC-IPACCESSLOGSP": _LOG,
    "IPV6-ACCESSLOGP": _LOG, "IPV6-ACCESSLOGDP": _LOG, "IPV6-ACCESSLOGNP": _LOG,
    "IPS-SIGNATURE": _ALERT, "PORT_SECURITY-PSECURE_VIOLATION": _ALERT_REFUSED,
    "SW_DAI-DHCP_SNOOPING_DENY": _ALERT_REFUSED, "IP-DUPADDR": _ALERT,
}
"""By facility and mnemonic."""
# fmt: on
DEVICES = {"ASA": "asa", "FTD": "ftd", "PIX": "pix", "FWSM": "fwsm"}


def _end(who: str) -> str:
    """`outside:192.0.2.1/22`, `192.0.2.1(22)`, `outside/192.0.2.1(22)`, `(192.0.2.1)`."""
    return (
        rf"\(?(?:(?!\d{{1,3}}\.\d)(?P<{who}if>[^\s:/()=]{{1,48}})(?::|/(?=[\w.:]{{2,45}}\()))?"
        rf"(?P<{who}ip>[\w.:-]{{2,64}})(?:[/(](?P<{who}port>[\w-]{{1,24}})\)?)?\)?"
    )


_ASIDE = r"(?: ?\([^()]{0,200}\))*"
_ENDS = re.compile(
    r"(?:\b(?:from|src|SRC|for|faddr|laddr|between host|packet:)\s*=? (?:[fgl]addr )?"
    r"|\b(?=\S{1,120} -> )|\[(?=\S{7,80} -> ))"
    rf"{_end('a')}{_ASIDE},? (?:.{{0,40}}?\b)?(?:to|dst|dest|DEST|laddr|==?>?|->)\s*=? {_end('b')}"
)
_ONE = re.compile(
    r"(?:\A|\bfrom|\bsrc|\bIP address:|[Uu]ser IP =|\bIP =|\bIP|\[Source:|Host:?|configuration:"
    r"|local-host|denied|permitted|\[|on vty\d+ \(|tty session \d+\() ?<?\(?"
    r"(?:[^\s:/()=]{1,48}:(?=\d{1,3}\.))?(?P<ip>(?=\S{0,4}[.:])[0-9A-Fa-f:.]{3,45})(?![\w.:])"
    r"(?:/(?P<port>\d{1,5})(?![\w.]))?"
)
_NAME = r"(?:\"([^\"]{1,256})\"|'([^']{1,256})'|<([^>]{1,256})>|([^\s:,\]'\"<>]{1,256}))"
_USERS = (
    re.compile(rf"(?:\b[Uu]ser(?:name)? ?= ?|\bUname: |\[user: |\bUser:|\bfor user ){_NAME}"),
    re.compile(rf"\b[Uu]ser (?=[\"'<]|\S{{1,256}} (?:has|locked|executed|running)\b){_NAME}"),
    re.compile(rf"\b(?:by|user) {_NAME} (?:on|Successful)\b"),
)
"""Who it is about, the surest words first."""
_REASON = re.compile(r"\b[Rr]eason ?[:=] ?([^:\[\]]{1,200}?)(?: : |: |\]|\.?\Z)")
_DETAIL = re.compile(r"\b(tcp|udp|icmp6?|gre|esp)\b", re.I)
_BYTES = re.compile(r"\bbytes (\d{1,19})")
_DURATION = re.compile(r"\bduration:? (\d{1,5}):(\d\d):(\d\d)")
_LIST = re.compile(r"\b(?:access-group|access-list|list) \"?([^\s\"]{1,128})")
_VERDICT = re.compile(r"\b(denied|permitted|est-allowed)\b")
_INTERFACE = re.compile(r"\b[Ii]nterface (?:name:? )?\"?(?!failed)([^\s,\"=]{2,64})")
_URL = re.compile(r"\bURL (?:[\d.]{7,15}:)?(\S{1,2048})")
_SIGNATURE = re.compile(r"Sig:(\d{1,9}) Subsig:\d{1,9} Sev:\d{1,3} (.{1,200}?) \[")
_FAILED = re.compile(r"fail|reject|denied|incorrect", re.I)
_STATE = re.compile(r"changed state to ([a-z ]{2,40})")
_HARDWARE = re.compile(r"\b([0-9a-f]{4})\.([0-9a-f]{4})\.([0-9a-f]{4})\b")
_COMMANDED = re.compile(
    r"executed (?:the )?'([^']{1,512})'|executed cmd:(.{1,512})|command:(.{1,512})"
)
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{1,4}\Z")
# fmt: off
PORTS = {
    "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "http": 80, "www": 80, "pop3": 110,
    "ntp": 123, "netbios-ns": 137, "netbios-dgm": 138, "netbios-ssn": 139, "snmp": 161, "bgp": 179,
    "ldap": 389, "https": 443, "isakmp": 500, "syslog": 514, "ldaps": 636, "sip": 5060,
    "ftp": 21, "tftp": 69, "bootps": 67, "bootpc": 68, "sunrpc": 111, "rtsp": 554, "h323": 1720,
}
"""Names that the devices write instead of numbers; Cisco ASA, "TCP and UDP Ports"."""
# fmt: on
_LOGINS = frozenset(("device_login", "vpn_login", "ssh_connection"))


def looks_like_cisco(head: bytes) -> bool:
    """Most of the first lines have a message code of Cisco."""
    return most_lines(head, _MARK)


@collector(CISCO, looks_like=looks_like_cisco, strength=70)
def cisco(records: Iterable[Record]) -> Iterator[Event]:
    """Read messages of ASA and IOS, bare or behind an envelope of syslog."""
    yield from read_marked(records, CISCO, read_cisco, "Cisco")


def read_cisco(record: Record) -> Event | None:
    """Read one line; None if it has no code of Cisco."""
    mark = _MARK.search(record.data, 0, 1_024)
    if mark is None:
        return None
    device, level, number, facility, graded, mnemonic = (
        part.decode() if part else "" for part in mark.groups()
    )
    message = record.data[mark.end() : mark.end() + MESSAGE_MAX].decode("utf-8", "backslashreplace")
    if device:
        says = ASA.get(number) or ASA_GROUPS.get(number[:3], _LOG)
        code, service = number, DEVICES[device]
    else:
        says = IOS.get(f"{facility}-{mnemonic}", _LOG)
        code, service = f"{facility}-{mnemonic}", "ios"
    if "ACCESSLOG" in code or code in ("106100", "106102", "106103"):
        found = _VERDICT.search(message)
        denied = found is None or found[1] == "denied"
        says = _REFUSED if denied else Says("packet_allowed", "", "allowed", source="firewall")
    fields: dict[str, Any] = {
        "event.action": says.action,
        "event.category": [says.category],
        "event.code": code,
        "event.dataset": f"cisco.{service}",
        "event.severity": int(level or graded),
        "message": clean(message),
        "observer.vendor": "Cisco",
    }
    if says.verdict:
        fields["event.type"] = [says.verdict]
    if says.kind:
        fields["event.kind"] = says.kind
    vendor = _take(says, code, message, fields)
    if vendor:
        fields["cw.vendor"] = vendor
    source = LogSource(category=says.source, product="cisco", service=service)
    around = around_mark(record, mark.start())
    return Event(around.time, source, enveloped(around, fields), record)


def _take(says: Says, code: str, message: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What a message says of ends, user, reason and the rest; what has no field is returned."""
    vendor: dict[str, Any] = {}
    if found := _ENDS.search(message):
        _ends(says, message, found, fields)
    if "source.ip" not in fields:
        _one_end(message, fields)
    if says.source == "firewall":
        _connection(message, fields, vendor)
        return vendor
    if found := next((one for pattern in _USERS if (one := pattern.search(message))), None):
        name = next((part for part in found.groups() if part), "")
        if name.strip("*"):  # failed names may be hidden by asterisks
            fields["user.name"] = clean(name)
    if says.action in _LOGINS:
        failed = says.outcome == "failure" or _FAILED.search(message) is not None
        fields["event.outcome"] = "failure" if failed else "success"
    if says.category == "web" and (found := _URL.search(message)):
        fields["url.original"] = clean(found[1])
    if found := _SIGNATURE.search(message):
        fields["rule.id"], fields["rule.name"] = found[1], clean(found[2])
    if found := _REASON.search(message):
        fields["event.reason"] = clean(found[1].strip())
    for name, pattern in (("interface", _INTERFACE), ("state", _STATE)):
        if found := pattern.search(message):
            vendor[name] = found[1].strip()
    if says.action == "link_state" and "state" in vendor:
        fields["event.reason"] = f"{vendor.get('interface', 'interface')} is {vendor['state']}"
    if found := _COMMANDED.search(message):
        vendor["command"] = clean(next(part for part in found.groups() if part).strip())
    if found := _HARDWARE.search(message):
        digits = "".join(found.groups())
        hardware = mac(":".join(digits[at : at + 2] for at in range(0, 12, 2)))
        if hardware:
            fields.setdefault("source.mac", hardware)
    return vendor


def _one_end(message: str, fields: dict[str, Any]) -> None:
    for one in _ONE.finditer(message):
        if ip := address(one["ip"]):
            fields["source.ip"] = ip
            if (number := port(one["port"])) is not None:
                fields["source.port"] = number
            return


def _connection(message: str, fields: dict[str, Any], vendor: dict[str, Any]) -> None:
    if found := _DETAIL.search(message):
        fields["network.transport"] = found[1].lower()
        if found[1].lower().startswith("icmp"):  # what stands for ports is no port
            fields.pop("source.port", None)
            fields.pop("destination.port", None)
    if "bytes " in message and (found := _BYTES.search(message)):
        fields["network.bytes"] = count(found[1]) or 0
    if "duration" in message and (found := _DURATION.search(message)):
        hours, minutes, seconds = map(int, found.groups())
        fields["event.duration"] = (hours * 3_600 + minutes * 60 + seconds) * 10**9
    if ("access-" in message or "list " in message) and (found := _LIST.search(message)):
        fields["rule.name"] = clean(found[1])
    if "nterface" not in message or "observer.ingress.interface.name" in fields:
        return
    if found := _INTERFACE.search(message):
        fields["observer.ingress.interface.name"] = clean(found[1].rstrip("."))


def _ends(says: Says, message: str, found: re.Match[str], fields: dict[str, Any]) -> None:
    """Both ends; who began is said by `outbound`, or guessed by the ports of an end."""
    first, second = _end_of(found, "a"), _end_of(found, "b")
    turned = message.startswith(("Built outbound", "Built Outbound"))
    if says is _ENDED and "ICMP" not in message[:20] and first[1] and second[1]:
        turned = first[1] < second[1]
    if turned:
        first, second = second, first
    for side, (ip, number, name), interface in (
        ("source", first, "observer.ingress.interface.name"),
        ("destination", second, "observer.egress.interface.name"),
    ):
        if ip:
            fields[f"{side}.ip"] = ip
        if number is not None:
            fields[f"{side}.port"] = number
        if name:
            fields[interface] = clean(name)


def _end_of(found: re.Match[str], who: str) -> tuple[str | None, int | None, str]:
    interface, host, number = found[f"{who}if"] or "", found[f"{who}ip"], found[f"{who}port"]
    ip = address(host)
    if interface and _HEXADECIMAL.match(interface) and (whole := address(f"{interface}:{host}")):
        ip, interface = whole, ""
    elif ip is None and host.count(":") == 1:
        host, _, number = host.partition(":")
        ip = address(host)
    return ip, port(number) if number and number.isdigit() else PORTS.get(number or ""), interface
