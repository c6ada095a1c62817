"""The field table: every name an event may carry, with its type; no other name is written.

References:
    ECS 9.4.0 for the first part; `ot.*`, `phys.*` and `cw.*` are cityward's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

SCHEMA_VERSION = "1.0.0"
"""An optional field more is a minor version; a changed meaning or type a major one."""


class Field(msgspec.Struct, frozen=True):
    """Type of a field, in the words of an OpenSearch mapping, and its meaning."""

    type: str
    """`keyword`, `text`, `long`, `double`, `float`, `boolean`, `date`, `ip`, `geo_point`,
    `flat_object`; `[]` behind it for a list."""
    meaning: str


FIELDS: dict[str, Field] = {
    "@timestamp": Field("date", "Date/time when the event originated"),
    "message": Field("text", "Log message optimized for viewing in a log viewer"),
    "tags": Field("keyword[]", "List of keywords used to tag each event"),
    "event.action": Field("keyword", "The action captured by the event"),
    "event.category": Field("keyword[]", "Event category"),
    "event.code": Field("keyword", "Identification code for this event"),
    "event.created": Field("date", "Time when the event was first read by an agent or by your pi"),
    "event.dataset": Field("keyword", "Name of the dataset"),
    "event.duration": Field("long", "Duration of the event in nanoseconds"),
    "event.end": Field("date", "`event.end` contains the date when the event ended or when t"),
    "event.hash": Field("keyword", "Hash (perhaps logstash fingerprint) of raw field to be able"),
    "event.id": Field("keyword", "Unique ID to describe the event"),
    "event.ingested": Field("date", "Timestamp when an event arrived in the central data store"),
    "event.kind": Field("keyword", "The kind of the event"),
    "event.module": Field("keyword", "Name of the module this data is coming from"),
    "event.original": Field("keyword", "Raw text message of entire event"),
    "event.outcome": Field("keyword", "The outcome of the event"),
    "event.provider": Field("keyword", "Source of the event"),
    "event.reason": Field("keyword", "Reason why this event happened, according to the source"),
    "event.sequence": Field("long", "Sequence number of the event"),
    "event.severity": Field("long", "Numeric severity of the event"),
    "event.start": Field("date", "`event.start` contains the date when the event started or wh"),
    "event.type": Field("keyword[]", "Event type"),
    "event.url": Field("keyword", "Event investigation URL"),
    "source.ip": Field("ip", "IP address of the source"),
    "source.port": Field("long", "Port of the source"),
    "source.mac": Field("keyword", "MAC address of the source"),
    "source.bytes": Field("long", "Bytes sent from the source to the destination"),
    "source.packets": Field("long", "Packets sent from the source to the destination"),
    "source.domain": Field("keyword", "The domain name of the source"),
    "source.geo.country_iso_code": Field("keyword", "Country ISO code"),
    "source.geo.location": Field("geo_point", "Longitude and latitude"),
    "source.as.number": Field("long", "Unique number allocated to the autonomous system"),
    "source.as.organization.name": Field("keyword", "Organization name"),
    "destination.ip": Field("ip", "IP address of the destination"),
    "destination.port": Field("long", "Port of the destination"),
    "destination.mac": Field("keyword", "MAC address of the destination"),
    "destination.bytes": Field("long", "Bytes sent from the destination to the source"),
    "destination.packets": Field("long", "Packets sent from the destination to the source"),
    "destination.domain": Field("keyword", "The domain name of the destination"),
    "destination.geo.country_iso_code": Field("keyword", "Country ISO code"),
    "destination.geo.location": Field("geo_point", "Longitude and latitude"),
    "destination.as.number": Field("long", "Unique number allocated to the autonomous system"),
    "destination.as.organization.name": Field("keyword", "Organization name"),
    "network.transport": Field("keyword", "Protocol Name corresponding to the field `iana_number`"),
    "network.protocol": Field("keyword", "Application protocol name"),
    "network.application": Field("keyword", "Application level protocol name"),
    "network.community_id": Field("keyword", "A hash of source and destination IPs and ports"),
    "network.direction": Field("keyword", "Direction of the network traffic"),
    "network.type": Field("keyword", "In the OSI Model this would be the Network Layer"),
    "network.bytes": Field("long", "Total bytes transferred in both directions"),
    "network.packets": Field("long", "Total packets transferred in both directions"),
    "network.vlan.id": Field("keyword", "VLAN ID as reported by the observer"),
    "host.name": Field("keyword", "Name of the host"),
    "host.ip": Field("ip[]", "Host ip addresses"),
    "host.mac": Field("keyword[]", "Host MAC addresses"),
    "host.hostname": Field("keyword", "Hostname of the host"),
    "host.os.name": Field("keyword", "Operating system name, without the version"),
    "user.name": Field("keyword", "Short name or login of the user"),
    "user.id": Field("keyword", "Unique identifier of the user"),
    "user.domain": Field("keyword", "Name of the directory the user is a member of"),
    "user.email": Field("keyword", "User email address"),
    "user.roles": Field("keyword[]", "Array of user roles at the time of the event"),
    "process.name": Field("keyword", "Process name"),
    "process.pid": Field("long", "Process id"),
    "process.executable": Field("keyword", "Absolute path to the process executable"),
    "process.command_line": Field("keyword", "Full command line that started the process"),
    "process.parent.name": Field("keyword", "Process name"),
    "process.parent.executable": Field("keyword", "Absolute path to the process executable"),
    "process.parent.command_line": Field("keyword", "Full command line that started the process"),
    "process.working_directory": Field("keyword", "The working directory of the process"),
    "file.name": Field("keyword", "Name of the file including the extension, without the direct"),
    "file.path": Field("keyword", "Full path to the file, including the file name"),
    "file.extension": Field("keyword", "File extension, excluding the leading dot"),
    "file.size": Field("long", "File size in bytes"),
    "file.hash.sha256": Field("keyword", "SHA256 hash"),
    "file.hash.md5": Field("keyword", "MD5 hash"),
    "http.request.method": Field("keyword", "HTTP request method"),
    "http.request.body.bytes": Field("long", "Size in bytes of the request body"),
    "http.request.body.content": Field("keyword", "The full HTTP request body"),
    "http.request.mime_type": Field("keyword", "Mime type of the body of the request"),
    "http.request.referrer": Field("keyword", "Referrer for this HTTP request"),
    "http.response.body.bytes": Field("long", "Size in bytes of the response body"),
    "http.response.status_code": Field("long", "HTTP response status code"),
    "http.response.mime_type": Field("keyword", "Mime type of the body of the response"),
    "http.version": Field("keyword", "HTTP version"),
    "url.original": Field("keyword", "Unmodified original url as seen in the event source"),
    "url.full": Field("keyword", "Full unparsed URL"),
    "url.path": Field("keyword", "Path of the request, such as /search"),
    "url.query": Field("keyword", "Query string of the request"),
    "url.domain": Field("keyword", "Domain of the url"),
    "url.scheme": Field("keyword", "Scheme of the url"),
    "dns.id": Field("keyword", "The DNS packet identifier assigned by the program that gener"),
    "dns.type": Field("keyword", "The type of DNS event captured, query or answer"),
    "dns.question.name": Field("keyword", "The name being queried"),
    "dns.question.type": Field("keyword", "The type of record being queried"),
    "dns.question.registered_domain": Field("keyword", "The highest registered domain"),
    "dns.answers.name": Field("keyword", "The domain name to which this resource record pertains"),
    "dns.answers.data": Field("keyword", "The data describing the resource"),
    "dns.answers.type": Field("keyword", "The type of data contained in this resource record"),
    "dns.answers.ttl": Field("long", "The time interval in seconds that this resource record may"),
    "dns.resolved_ip": Field("ip[]", "Array containing all IPs seen in answers.data"),
    "dns.op_code": Field("keyword", "The DNS operation code that specifies the kind of query"),
    "dns.response_code": Field("keyword", "The DNS response code"),
    "tls.version": Field("keyword", "Numeric part of the version parsed from the original string"),
    "tls.version_protocol": Field("keyword", "Normalized lowercase protocol name"),
    "tls.next_protocol": Field("keyword", "String indicating the protocol being tunneled"),
    "tls.resumed": Field("boolean", "This TLS connection was resumed from an existing negotiation"),
    "tls.cipher": Field("keyword", "String indicating the cipher used during the current connect"),
    "tls.client.server_name": Field("keyword", "Hostname the client is trying to connect to"),
    "tls.client.ja3": Field(
        "keyword", "A hash that identifies clients based on how they perform an"
    ),
    "tls.client.subject": Field(
        "keyword", "Subject of the x.509 certificate presented by the client"
    ),
    "tls.client.issuer": Field(
        "keyword", "Subject of the issuer of the x.509 certificate presented by the client"
    ),
    "tls.client.hash.sha256": Field("keyword", "SHA256 of the certificate offered by the client"),
    "tls.client.not_before": Field("date", "When the client certificate is first considered valid"),
    "tls.client.not_after": Field("date", "When the client certificate is no longer valid"),
    "tls.client.x509.alternative_names": Field("keyword[]", "List of subject alternative names"),
    "tls.server.ja3s": Field("keyword", "A hash that identifies servers based on how they perform"),
    "tls.server.hash.sha256": Field("keyword", "SHA256 of the certificate offered by the server"),
    "tls.server.not_before": Field("date", "When the server certificate is first considered valid"),
    "tls.server.not_after": Field("date", "When the server certificate is no longer valid"),
    "tls.server.x509.alternative_names": Field("keyword[]", "List of subject alternative names"),
    "tls.server.subject": Field(
        "keyword", "Subject of the x.509 certificate presented by the server"
    ),
    "tls.server.issuer": Field(
        "keyword", "Subject of the issuer of the x.509 certificate presented by"
    ),
    "user_agent.original": Field("keyword", "Unparsed user_agent string"),
    "user_agent.name": Field("keyword", "Name of the user agent"),
    "user_agent.version": Field("keyword", "Version of the user agent"),
    "rule.id": Field("keyword", "Rule ID"),
    "rule.name": Field("keyword", "Rule name"),
    "rule.category": Field("keyword", "Rule category"),
    "rule.description": Field("keyword", "Rule description"),
    "rule.reference": Field("keyword", "Rule reference URL"),
    "rule.ruleset": Field("keyword", "Rule ruleset"),
    "rule.uuid": Field("keyword", "Rule UUID"),
    "rule.version": Field("keyword", "Rule version"),
    "rule.author": Field("keyword[]", "Rule author"),
    "rule.license": Field("keyword", "Rule license"),
    "threat.framework": Field("keyword", "Threat classification framework"),
    "threat.technique.id": Field("keyword[]", "Threat technique id"),
    "threat.technique.name": Field("keyword[]", "Threat technique name"),
    "threat.tactic.id": Field("keyword[]", "Threat tactic id"),
    "threat.tactic.name": Field("keyword[]", "Threat tactic"),
    "threat.indicator.type": Field("keyword", "Type of indicator"),
    "threat.indicator.ip": Field("ip", "Indicator IP address"),
    "threat.indicator.name": Field("keyword", "Indicator display name"),
    "threat.indicator.description": Field("keyword", "Indicator description"),
    "threat.indicator.marking.tlp": Field("keyword", "Indicator TLP marking"),
    "threat.indicator.provider": Field("keyword", "Indicator provider"),
    "vulnerability.id": Field("keyword", "ID of the vulnerability"),
    "vulnerability.severity": Field("keyword", "Severity of the vulnerability"),
    "vulnerability.description": Field("keyword", "Description of the vulnerability"),
    "related.ip": Field("ip[]", "All of the IPs seen on your event"),
    "related.user": Field(
        "keyword[]", "All the user names or other user identifiers seen on the eve"
    ),
    "related.hosts": Field("keyword[]", "All the host identifiers seen on your event"),
    "related.hash": Field("keyword[]", "All the hashes seen on your event"),
    "observer.name": Field("keyword", "Custom name of the observer"),
    "observer.type": Field("keyword", "The type of the observer the data is coming from"),
    "observer.ip": Field("ip[]", "IP addresses of the observer"),
    "observer.hostname": Field("keyword", "Hostname of the observer"),
    "observer.ingress.interface.name": Field("keyword", "Interface name"),
    "observer.egress.interface.name": Field("keyword", "Interface name"),
    "observer.ingress.vlan.id": Field("keyword", "VLAN ID as reported by the observer"),
    "observer.serial_number": Field("keyword", "Observer serial number"),
    "observer.version": Field("keyword", "Observer version"),
    "observer.vendor": Field("keyword", "Vendor name of the observer"),
    "observer.product": Field("keyword", "The product name of the observer"),
    "log.level": Field("keyword", "Log level of the log event"),
    "log.file.path": Field("keyword", "Full path to the log file this event came from"),
    "log.syslog.appname": Field(
        "keyword", "The device or application that originated the Syslog message"
    ),
    "log.syslog.facility.name": Field("keyword", "Syslog text-based facility of the event"),
    "log.syslog.severity.name": Field("keyword", "Syslog text-based severity of the event"),
    "log.syslog.hostname": Field("keyword", "The host that originated the Syslog message"),
    "log.syslog.procid": Field(
        "keyword", "The process name or ID that originated the Syslog message"
    ),
    "log.syslog.msgid": Field("keyword", "An identifier for the type of Syslog message"),
    "log.syslog.priority": Field("long", "Syslog priority of the event"),
    "log.syslog.version": Field("keyword", "Syslog protocol version"),
    "error.message": Field("text", "Error message"),
    "error.code": Field("keyword", "Error code describing the error"),
    "error.type": Field("keyword", "The type of the error, for example the class name of the exc"),
    "cw.record.source": Field("keyword", "source id the record came from"),
    "cw.record.place": Field("keyword", "place of the record in its source"),
    "cw.record.number": Field("long", "number of the event within the record"),
    "cw.logsource.category": Field("keyword", "Sigma log source, category"),
    "cw.logsource.product": Field("keyword", "Sigma log source, product"),
    "cw.logsource.service": Field("keyword", "Sigma log source, service"),
    "cw.schema": Field("keyword", "version of this model"),
    "cw.operator": Field("keyword", "stable operator id, e.g. `op-metro`"),
    "cw.sector": Field("keyword", "sector of the operator"),
    "cw.domain": Field("keyword[]", "`cyber`, `physical`, `availability`, `hazard`"),
    "cw.site": Field("keyword", "depot, substation, terminal, junction"),
    "cw.time_source": Field("keyword", "whose clock: `source` or `collector`"),
    "cw.clock_skew_ms": Field("long", "estimated error of that clock, ms"),
    "cw.source.zone": Field("keyword", "IEC 62443 zone id of the source"),
    "cw.source.zone_type": Field("keyword", "zone type of the source"),
    "cw.source.purdue": Field("float", "Purdue level of the source, 0 to 5"),
    "cw.source.asset_id": Field("keyword", "inventory id of the source"),
    "cw.destination.zone": Field("keyword", "IEC 62443 zone id of the destination"),
    "cw.destination.zone_type": Field("keyword", "zone type of the destination"),
    "cw.destination.purdue": Field("float", "Purdue level of the destination, 0 to 5"),
    "cw.destination.asset_id": Field("keyword", "inventory id of the destination"),
    "cw.asset.zone": Field("keyword", "IEC 62443 zone id of the affected asset"),
    "cw.asset.zone_type": Field("keyword", "zone type of the affected asset"),
    "cw.asset.purdue": Field("float", "Purdue level of the affected asset, 0 to 5"),
    "cw.asset.asset_id": Field("keyword", "inventory id of the affected asset"),
    "cw.conduit.id": Field("keyword", "declared conduit that the flow used"),
    "cw.conduit.allowed": Field("boolean", "false: no conduit allows the flow"),
    "cw.mode": Field("keyword", "`normal`, `maintenance`, `exercise`, `test`"),
    "cw.vendor": Field("flat_object", "whatever the source says beyond this table"),
    "ot.operation": Field("keyword", "protocol-neutral class: `read`, `write`, `control` …"),
    "ot.is_command": Field("boolean", "true if the message can change process or device state"),
    "ot.direction": Field("keyword", "`request`, `response`, `unsolicited`"),
    "ot.function.code": Field("keyword", "function code as decoded"),
    "ot.function.name": Field("keyword", "name of the function code"),
    "ot.function.sub": Field("keyword", "sub-function (Modbus 8, UMAS, S7 user data)"),
    "ot.unit": Field("keyword", "Modbus unit, DNP3 outstation, BACnet instance"),
    "ot.common_address": Field("keyword", "IEC 104 ASDU address"),
    "ot.point.address": Field("long", "register, IOA, index"),
    "ot.point.count": Field("long", "how many points"),
    "ot.point.type": Field("keyword", "`coil`, `holding_register`, `single_command` …"),
    "ot.point.tag": Field("keyword", "engineering tag from the inventory"),
    "ot.value": Field("double", "numeric value sent or read"),
    "ot.value_prev": Field("double", "previous known value"),
    "ot.value_raw": Field("keyword", "undecodable or list form of the value"),
    "ot.unit_of_measure": Field("keyword", "UCUM code"),
    "ot.cause": Field("keyword", "IEC 104 cause of transmission, DNP3 IIN flags …"),
    "ot.exception": Field("keyword", "exception or error code of the response"),
    "ot.link_id": Field("keyword", "joins request and response"),
    "ot.mqtt.topic": Field("keyword", "MQTT topic"),
    "ot.mqtt.client_id": Field("keyword", "MQTT client id"),
    "ot.program.hash": Field("keyword", "hash of a program sent to a controller"),
    "ot.firmware.version": Field("keyword", "firmware version"),
    "ot.charger.id": Field("keyword", "charge point id"),
    "ot.charger.connector": Field("keyword", "connector of the charge point"),
    "ot.trip.id": Field("keyword", "trip id of the timetable"),
    "ot.trip.route": Field("keyword", "route id of the timetable"),
    "ot.trip.delay_s": Field("long", "delay of the trip, s; early is negative"),
    "phys.subject": Field("keyword", "badge, ticket or plate; personal"),
    "phys.point": Field("keyword", "door, gate, reader, camera, signal head, siren, gauge"),
    "phys.state": Field("keyword", "`open`, `closed`, `forced`, `tampered`, `offline` …"),
    "phys.state_prev": Field("keyword", "state before"),
    "phys.reading": Field("double", "value read"),
    "phys.quantity": Field("keyword", "what was read, e.g. `water_level`"),
    "phys.unit": Field("keyword", "unit of the reading, e.g. `m`"),
    "phys.quality": Field("keyword", "`good`, `uncertain`, `bad`, `substituted`"),
    "phys.location": Field("geo_point", "place of the point, `lat,lon`"),
    "phys.position": Field("geo_point", "claimed position of a vehicle or vessel, `lat,lon`"),
    "phys.speed": Field("double", "claimed speed, m/s"),
    "phys.course": Field("double", "claimed course, degrees"),
    "phys.track": Field("keyword", "MMSI or vehicle id"),
    "phys.object": Field("keyword", "analytics class: `person`, `vehicle`, `smoke` …"),
    "phys.priority_class": Field("keyword", "right-of-way class claimed in a priority request"),
}
"""Every field of an event."""

FINDING_FIELDS: dict[str, Field] = {
    "finding.id": Field("keyword", "UUIDv5 of the fingerprint"),
    "finding.fingerprint": Field("keyword", "deduplication key, keyed"),
    "finding.revision": Field("long", "raised by every change; external version in a cluster"),
    "finding.type": Field("keyword", "`detection`, `anomaly`, `correlation`, `hazard` …"),
    "finding.title": Field("text", "one line"),
    "finding.description": Field("text", "what, where, why it matters"),
    "finding.status": Field("keyword", "`new`, `in_progress`, `suppressed`, `resolved` …"),
    "finding.verdict": Field("keyword", "`unknown`, `true_positive`, `false_positive` …"),
    "finding.severity": Field("keyword", "`informational` to `fatal`"),
    "finding.risk": Field("long", "0 to 100"),
    "finding.risk_model": Field("keyword", "version of the formula of the risk"),
    "finding.confidence": Field("float", "0 to 1"),
    "finding.cause": Field("keyword", "`malicious`, `error`, `malfunction`, `hazard` …"),
    "finding.category": Field("keyword[]", "IDMEFv2 category"),
    "finding.impact": Field("keyword[]", "`loss_of_view`, `loss_of_control` …"),
    "finding.first_seen": Field("date", "time of the first contributing event"),
    "finding.last_seen": Field("date", "time of the last contributing event"),
    "finding.count": Field("long", "matches so far"),
    "finding.created": Field("date", "when it was made"),
    "finding.modified": Field("date", "when it was changed last"),
    "finding.closed": Field("date", "when it was closed"),
    "finding.mode": Field("keyword", "`normal`, `maintenance`, `exercise`, `test`"),
    "rule.status": Field("keyword", "status of the Sigma document"),
    "cw.analytic.type": Field("keyword", "`rule`, `correlation`, `model`, `indicator`, `manual`"),
    "cw.analytic.score": Field("double", "score of a model"),
    "cw.analytic.threshold": Field("double", "limit of the score"),
    "cw.attack_version": Field("keyword", "version of ATT&CK that the ids are of"),
    "cw.asset.type": Field("keyword", "type of the affected asset"),
    "cw.asset.criticality": Field("long", "1 to 5"),
    "cw.asset.safety_related": Field("boolean", "whether people's safety rests on it"),
    "cw.marking.tlp": Field("keyword", "`clear`, `green`, `amber`, `amber+strict`, `red`"),
    "cw.marking.pap": Field("keyword", "`clear`, `green`, `amber`, `red`: what a reader may do"),
    "cw.marking.personal_data": Field("boolean", "true if any field can identify a person"),
    "cw.incident_id": Field("keyword", "case it belongs to"),
    "cw.share.ids": Field("keyword[]", "share ids under which it left"),
}
"""What a finding has besides the fields of its deciding event."""

SHARED_FIELDS: dict[str, Field] = {
    "cw.share.id": Field("keyword", "id of the shared object"),
    "cw.share.revision": Field("long", "revision of the finding that was shared"),
    "cw.share.policy": Field("keyword", "content hash of the policy that let it out"),
    "cw.share.rule": Field("keyword", "rule of that policy"),
    "cw.share.derived_from": Field("keyword[]", "of a campaign: the shares it rests on"),
    "cw.share.audiences": Field("keyword[]", "who may read it"),
    "cw.share.expires": Field("date", "when it is withdrawn by itself"),
    "cw.campaign.operators": Field("keyword[]", "operators whose shares a campaign joins"),
    "cw.campaign.sectors": Field("keyword[]", "their sectors"),
    "cw.campaign.join": Field("keyword", "why: `token`, `sequence`, `heartbeat`, `place`, `rate`"),
    "cw.campaign.tokens": Field("keyword[]", "tokens that the shares have in common"),
    "source.token": Field("keyword[]", "what became of an address: `j:`, `l:`, `p:`, `n:`"),
    "destination.token": Field("keyword[]", "what became of an address: `j:`, `l:`, `p:`, `n:`"),
}
"""What a shared finding has besides the fields that the policy let out."""

PERSONAL = frozenset(
    {
        "user.name",
        "user.id",
        "user.email",
        "user.domain",
        "related.user",
        "phys.subject",
        "phys.track",
        "phys.position",
        "event.original",
        "process.command_line",
        "process.parent.command_line",
        "http.request.body.content",
    }
)
"""Fields that can identify a person; sharing never keeps them without a named legal basis."""

SECTORS = (
    "transport.public",
    "transport.rail",
    "transport.road",
    "transport.maritime",
    "transport.aviation",
    "energy.electricity",
    "energy.district_heating",
    "energy.gas",
    "water.drinking",
    "water.wastewater",
    "water.dams_flood",
    "administration.local",
    "emergency.civil_protection",
    "emergency.police",
    "emergency.fire",
    "digital.telecom",
    "waste",
    "other",
)

_PYTHON: dict[str, tuple[type, ...]] = {
    "keyword": (str,),
    "text": (str,),
    "ip": (str,),
    "geo_point": (str,),
    "date": (datetime,),
    "long": (int,),
    "double": (float, int),
    "float": (float, int),
    "boolean": (bool,),
    "flat_object": (dict,),
}


def faults(fields: Mapping[str, Any]) -> list[str]:
    """Names that are not in the table and values of a wrong type, in words; empty if none."""
    found = []
    for name, value in fields.items():
        field = FIELDS.get(name)
        if field is None:
            found.append(f"{name} is no field of the table; put it under cw.vendor")
        elif not _fits(field.type, value):
            found.append(f"{name} is {value!r}, the table wants {field.type}")
    return found


def _fits(kind: str, value: Any) -> bool:
    if kind.endswith("[]"):
        return isinstance(value, (list, tuple)) and all(_fits(kind[:-2], one) for one in value)
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _PYTHON[kind])
