"""Whatever arrives, a collector answers with events that keep its promises."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pytest
from google.transit import gtfs_realtime_pb2 as gtfs

from cityward.checks import broken_promises, mutants, records
from cityward.checks import events_of as run


def _feed() -> bytes:
    feed = gtfs.FeedMessage()
    feed.header.gtfs_realtime_version = "2.0"
    feed.header.timestamp = 1_700_000_000
    trip = feed.entity.add(id="1").trip_update
    trip.trip.trip_id, trip.trip.route_id = "t1", "C4"
    trip.stop_time_update.add(stop_id="s1").departure.delay = 30
    bus = feed.entity.add(id="2").vehicle
    bus.vehicle.id = "7"
    bus.position.latitude, bus.position.longitude, bus.position.speed = 40.6, 22.9, 8.5
    alert = feed.entity.add(id="3").alert
    alert.header_text.translation.add(text="Strike")
    alert.cause = gtfs.Alert.STRIKE
    data: bytes = feed.SerializeToString()
    return data


SAMPLES: dict[str, list[bytes]] = {
    "can": [
        b"(1398128223.803317) can0 166#D0320009\n(1398128223.9) can0 20000040#00\n(1398128224.9"
        b") can0 18FEF100##1FF00\n(1398128225.1) can0 166#R4\n",
    ],
    "ais": [
        b"$PGHP,1,2010,6,11,11,46,11,390,231,45,992190934,1,2B*5B",
        b"!AIVDM,2,1,9,B,55R3Vn82=ILTQ3KKS>1<D60Dq@E918U<F222221J1`?164vc03S1CCAD,0*2A",
        b"!AIVDM,2,2,9,B,`88888888888880,2*76",
    ],
    "cef": [
        b"Oct 26 20:01:31 gw CEF:0|v|p|1|201|Threat blocked|7|proto=TCP src=198.51.100.10 "
        b"spt=46621 dpt=80 act=blocked cs1Label=Rule cs1=A b rt=1566202370000 msg=x \\= y",
    ],
    "cisco": [
        b"<166>Oct 14 2024 13:46:40 fw1 : %ASA-6-302013: Built outbound TCP connection 9 f"
        b"or outside:10.1.2.1/22 (10.1.2.1/22) to inside:10.1.1.2/53496 (10.1.1.2/53496)",
        b"<189>123: *Mar  1 18:46:11.123: %SEC_LOGIN-4-LOGIN_FAILED: Login failed [user: a"
        b"dmin] [Source: 192.0.2.7] [localport: 22] [Reason: Login Authentication Failed] "
        b"at 18:46:11",
    ],
    "fortigate": [
        b'date=2025-05-10 time=09:00:01 devname="FG1" eventtime=1746867601123456789 tz="-0'
        b'700" logid="1" type="event" subtype="vpn" action="ssl-login-fail" remip=192.168.'
        b'0.1 user="x" dstport=80 duration=5 srcmac="00:0D:60:AF:1B:61" url="http://x/?a=b'
        b'" ui="https(192.0.2.9)"',
    ],
    "gnss": [
        b"$GNRMC,223745.00,A,3806.62964,N,12237.61382,W,0.040,,110720,,,D,V*0E",
        b"$GPGSV,4,2,16,16,25,306,30,18,68,358,39,20,63,235,37,21,35,292,,1*6B",
    ],
    "gates": [
        b'{"time": "2026-03-01T08:00:00+02:00", "station": "ST04", "gate": "G2", "event": "valid'
        b'ation", "result": "open", "ticket": "9f86d081884c7d65"}',
        b'{"time": 1772000000, "gate": "G2", "event": "state", "state": "forced", "user": "x"}',
    ],
    "gtfs-realtime": [_feed()],
    "leef": [
        b"LEEF:2.0|V|P|2|Login Failed|x5E|usrName=joe^src=192.0.2.1^devTime=2026-01-01T00:00:00Z",
    ],
    "lorawan": [
        b'{"time": "2026-03-01T10:00:00Z", "deviceInfo": {"applicationName": "Floods", "device'
        b'Name": "Gauge EM500-SWL", "devEui": "24e124126b123456"}, "fCnt": 7, "fPort": 85, "da'
        b'ta": "AXVkA3cCAA==", "rxInfo": [{"gatewayId": "a1", "rssi": -101, "snr": 1.5}]}',
        b'{"end_device_ids": {"device_id": "bin-4", "dev_eui": "70B3D57ED0000001"}, "uplink_me'
        b'ssage": {"f_port": 2, "f_cnt": 1, "decoded_payload": {"level": 41.5, "lid": {"open":'
        b' false}}, "received_at": "2026-03-01T10:00:00Z"}}',
    ],
    "mikrotik": [
        b"firewall,info drop-in input: in:ether1 out:(unknown 0), connection-state:new src"
        b"-mac 00:17:10:88:bc:02, proto TCP (SYN), [2001:db8::1]:40384->[2001:db8::2]:22, "
        b"len 40",
        b"2023-03-19T12:34:09.757188+01:00 10.120.127.1 system,error,critical login failur"
        b"e for user admin from 10.10.0.35 via winbox",
    ],
    "netfilter": [
        b"Oct 30 10:09:23 gw kernel: [  203.842973] DROP: IN=eth0 OUT= MAC=00:08:a2:0c:1f:12:"
        b"00:c8:8b:e2:d6:87:08:00 SRC=192.0.2.1 DST=192.0.2.2 LEN=84 PROTO=TCP SPT=1 DPT=23 SYN",
    ],
    "netflow": [
        bytes.fromhex(
            "000500010000ea606553f1001dcd65000000000000000000c0000201c6336407000000000001000200000003"
            "000000b40000c3500000e6789c4001bb001b06000000000000000000"
        ),
        bytes.fromhex(
            "000900020000ea606553f10000000000000000000000001001000002000800040004000101000009c0000201"
            "11"
        ),
    ],
    "ocpp": [
        b'{"ts": "2026-03-01T08:00:00Z", "cp": "CP-17", "dir": "out", "msg": [2, "s1", "Reset", '
        b'{"type": "Hard"}]}',
        b"[INFO ] 2026-03-01 08:00:00,123 WebSocketLogger (qtp-7) - [chargeBoxId=CP-17, session"
        b'Id=0a] Received: [3, "s1", {"status": "Accepted"}]',
    ],
    "nmea2000": [
        b"(1410714882.622188) can0 09F80102#36729A16021AB80D\n"
        b"(1410714882.722188) can0 09F80102#36729A16021AB80D\n"
        b"(1410714884.687678) can0 18EEFF11#40E2C1DD00C8A0C0\n"
        b"(1410714884.0) can0 0DED1102#000601120100F802",
    ],
    "onvif": [
        b'<e xmlns="http://www.onvif.org/ver10/schema"><NotificationMessage><Topic>tns1:Door/State'
        b'/DoorAlarm</Topic><Message UtcTime="2026-02-01T10:00:00Z" PropertyOperation="Changed"><S'
        b'ource><SimpleItem Name="DoorToken" Value="d1"/></Source><Data><SimpleItem Name="State" V'
        b'alue="DoorForcedOpen"/></Data></Message></NotificationMessage></e>',
    ],
    "opencanary": [
        b'{"dst_host": "10.0.0.9", "dst_port": 22, "logdata": {"USERNAME": "root", "PASSWO'
        b'RD": "x"}, "logtype": 4002, "node_id": "c", "src_host": "192.0.2.9", "src_port":'
        b' 4711, "utc_time": "2024-05-01 10:00:00.123"}',
    ],
    "osdp": [
        b'{ "timeSec" : "1693167786", "timeNano" : "036554064", "io" : "out", "data" : " ff 53 80 '
        b'0a 00 04 48 00 01 0f a1", "osdpTraceVersion":"1" }',
    ],
    "paloalto": [
        b"1,2024/05/01 12:00:01,007051000012345,TRAFFIC,end,2561,2024/05/01 12:00:01,10.0."
        b"0.5,192.0.2.8,198.51.100.1,192.0.2.8,out,ann,,ssl,vsys1,trust,untrust,e2,e1,fwd,"
        b"x,4711,1,50123,443,61000,443,0x4,tcp,allow,5300,1300,4000,20,2024/05/01 11:59:00"
        b",61,any",
    ],
    "pf": [
        b"Sep 30 14:35:50 pfSense filterlog: 53,,,1000102631,em0,match,block,in,4,0x0,,64,"
        b"892,0,none,6,tcp,44,10.0.2.2,10.0.2.15,59576,22,0,S,17536001,,65535,,mss",
        b"Oct 26 14:50:21 pfSense php-fpm[374]: /index.php: webConfigurator authentication"
        b" error for user 'toto' from: 10.0.0.1",
    ],
    "river": [
        b'{"name": "ns1:timeSeriesResponseType", "value": {"timeSeries": [{"name": "n", '
        b'"sourceInfo": {"siteName": "R", "siteCode": '
        b'[{"value": "01"}], "geoLocation": {"geogLocation": {"latitude": 38.9, "longitude": '
        b'-75.7}}}, "variable": {"variableCode": [{"value": "00065"}], "unit": {"unitCode": "ft"},'
        b' "noDataValue": -999999.0}, "values": [{"value": [{"value": "6.48", "qualifiers": ["A"],'
        b' "dateTime": "2019-02-14T00:00:00.000-05:00"}]}]}]}}',
    ],
    "river-readings": [
        b'{"gauge": "G1", "time": "2026-03-01T10:00:00Z", "water_level_m": 2.41, "latitude": 40.1,'
        b' "longitude": 22.9, "battery_v": 3.6}',
    ],
    "shipped": [
        b'{"@timestamp":"2026-03-01T00:00:00Z","event.action":"login","source.ip":"192.0.2.1",'
        b'"cw.logsource.service":"sshd","observer.name":"auth","cw.record.place":"7"}',
    ],
    "signals": [
        b'{"time": "2026-03-01T08:00:00Z", "controller": "sig-014", "event": "mode", "mode": "fl'
        b'ash", "cause": "conflict"}',
        b'{"time": 1772000000, "controller": "c", "event": "priority", "vehicle": "B-7", "class":'
        b' "transit", "state": "requested", "latitude": 40.6, "longitude": 22.9, "speed": 8}',
    ],
    "siri": [
        b'<Siri xmlns="http://www.siri.org.uk/siri"><ServiceDelivery><ResponseTimestamp>2026-03-01'
        b"T10:00:00Z</ResponseTimestamp><EstimatedTimetableDelivery><EstimatedVehicleJourney><Lin"
        b"eRef>L1</LineRef><EstimatedCalls><EstimatedCall><Cancellation>true</Cancellation></Esti"
        b"matedCall></EstimatedCalls></EstimatedVehicleJourney></EstimatedTimetableDelivery><Vehi"
        b"cleMonitoringDelivery><VehicleActivity><MonitoredVehicleJourney><VehicleLocation><Longi"
        b"tude>22.9</Longitude><Latitude>40.6</Latitude></VehicleLocation><Delay>PT5M</Delay></Mo"
        b"nitoredVehicleJourney></VehicleActivity></VehicleMonitoringDelivery></ServiceDelivery><"
        b"/Siri>",
    ],
    "sensor-things": [
        b'{"value": [{"phenomenonTime": "2026-02-01T10:00:00Z", "result": 18.2, "Datastream": {"na'
        b'me": "p", "unitOfMeasurement": {"symbol": "m"}, "ObservedProperty": {"name": "pm10"}}}]}',
    ],
    "sflow": [
        bytes.fromhex(
            "0000000500000001c00002fe000000000000000100015f90000000020000000100000074000000070000"
            "0003000002000000280000000002000000030000000400000001000000010000004a000000010000003e"
            "000000040000003a0200000000010200000000028100000c08004500002800010000400600000a000001"
            "0a0000029c4001f6000000000000000050022000000000000000000000020000006c0000000900000003"
            "0000000100000001000000580000000300000006000000003b9aca00000000010000000300000001a13b"
            "86000000000100000002000000030000000400000005000000060000000342770c000000000700000008"
            "000000090000000a0000000b00000000"
        ),
    ],
    "sshd": [
        b"Feb 25 14:34:10 belka sshd[31602]: Failed password for invalid user ROOT from "
        b"192.0.2.77 port 50273 ssh2",
        b'<38>1 2019-07-08T17:40:16.954167-04:00 h.example sshd 57915 - [a@1 b="c"] Connection '
        b"closed by authenticating user root 192.0.2.10 port 46038 [preauth]",
    ],
    "suricata": [
        b'{"timestamp": "2022-07-12T06:22:33.415742+0000", "event_type": "alert", "src_ip": '
        b'"1.2.3.4", "src_port": 33270, "dest_ip": "1.2.3.5", "dest_port": 80, "proto": "TCP", '
        b'"alert": {"action": "allowed", "signature_id": 2034125, "rev": 4, "signature": "ET X", '
        b'"category": "c", "severity": 1, "metadata": {"mitre_technique_id": ["T1190"]}}, "http": '
        b'{"hostname": "h", "url": "/x", "status": 400}, "flow": {"pkts_toserver": 1, "start": '
        b'"2022-07-12T06:22:33.415742+0000"}}',
        b'{"timestamp": "2022-07-12T06:22:33.415742+0000", "event_type": "dns", "src_ip": "::1", '
        b'"dns": {"type": "query", "id": 3, "queries": [{"rrname": "a.example", "rrtype": "A"}]}}',
    ],
    "syslog": [
        b"Jun 12 16:20:12 leto sshd-session[406147]: message repeated 3 times: [ Failed password "
        b"for root from 192.0.2.1 port 49916 ssh2]",
        b"<13>2023-11-14T00:20:42.738197+01:00 gw app[12]: hello",
        b'{"log": "Oct 30 10:09:23 gw app[1]: x\\n", "time": "2023-11-14T00:20:42.738197111Z"}',
    ],
    "tables": [
        b"time;Flow [m3/h];Valve",
        b"31.12.2026 14:05;12,5;open",
        b"2026-12-31T14:06:00Z;;1",
    ],
    "tank-readings": [
        b'{"tank": "T1", "time": "2026-02-01T10:00:00Z", "level_m": 8.2, "water_m": 0.02, "tempera'
        b'ture_c": 14.5, "volume_m3": 812.4, "product": "diesel", "alarms": ["high_level"]}',
    ],
    "unifi-video": [
        b'[{"id":"1","type":"nfcCardScanned","start":1731245487257,"end":1731245487257,"smartDetec'
        b'tTypes":["person"],"camera":"c","metadata":{"nfc":{"nfcId":"64B2A621","userId":"u"}}}]',
    ],
    "wazuh": [
        b'{"timestamp": "2024-05-01T10:00:00.123+0200", "rule": {"level": 5, "description"'
        b': "x", "id": "5710", "groups": ["sshd", "authentication_failed"]}, "agent": {"na'
        b'me": "gw-1", "ip": "10.0.0.5"}, "manager": {"name": "wz"}, "data": {"srcip": "19'
        b'2.0.2.9"}}',
    ],
    "weather-station": [
        b'{"station": "w1", "time": "2026-02-01T10:00:00Z", "air_temperature_c": 21.5, "pm10_ug_m3'
        b'": 18, "latitude": 40.6, "longitude": 22.9}',
    ],
    "web-access": [
        b'www.example.net:80 192.0.2.1 - ann [08/Jun/2020:08:04:43 +0200] "GET /a/b?x=1 HT'
        b'TP/1.1" 301 12 "http://r/" "curl/7"',
        b"[Sat Jul 20 21:39:11.978080 2013] [auth_basic:error] [pid 17512:tid 1401] [clien"
        b't 192.0.2.1:51390] AH01617: user u: authentication failure for "/f": Password Mi'
        b"smatch",
    ],
    "windows": [
        b'{"EventID": 1, "Channel": "Microsoft-Windows-Sysmon/Operational", "Hostname": "w'
        b's5", "UtcTime": "2020-09-22 04:11:49.123", "Image": "C:\\\\Windows\\\\cmd.exe", "Pro'
        b'cessId": "0x14a0", "User": "CITY\\\\ann"}',
        b'{"@timestamp": "2024-05-01T10:00:00.123Z", "winlog": {"channel": "Security", "ev'
        b'ent_id": 4625, "computer_name": "dc1", "event_data": {"TargetUserName": "ann", "'
        b'IpAddress": "192.0.2.9"}}}',
    ],
    "zeek": [
        b'{"_path": "conn", "ts": 1700828217.314165, "uid": "C", "id.orig_h": "192.168.1.9", '
        b'"id.orig_p": 50820, "id.resp_h": "45.33.32.156", "id.resp_p": 443, "proto": "tcp", '
        b'"duration": 0.2, "orig_bytes": 0, "conn_state": "REJ"}',
        b"#fields\tts\tuid\tid.orig_h\tid.orig_p",
        b"1677024003.714845\tC6\t192.168.1.107\t65164",
    ],
    "zoneminder": [
        b"01/25/22 16:22:17.359785 web_php[118919].ERR [2001:db8::1] [Login denied for use"
        b'r "test"] at /usr/share/zoneminder/www/includes/auth.php line 313',
    ],
}
"""Good records of each collector, from which the broken ones are made."""

FIXED = [
    b"",
    b"\x00" * 64,
    b"\xff" * 64,
    b"{" * 5_000,
    b"[" * 5_000,
    b'{"a":' * 3_000,
    b"A" * 1_048_576,
    b"<13>" + b"a " * 500_000,
    b"Feb 12 14:10:21 h sshd[1]: Failed password for " + b"from " * 200_000,
    b"Feb 12 14:10:21 h kernel: IN= SRC=" + b"A=" * 500_000,
    b"<38>1 - h sshd 1 - " + b'[a b="' * 150_000,
    b'<38>1 - h sshd 1 - [a b="' + b"\\" * 1_000_000,
    b"Feb 12 14:10:21 h sshd[1]: message repeated 999999999 times: [ x]",
    b'{"timestamp": "2022-07-12T06:22:33Z", "event_type": "stats", "a": ['
    + b"1," * 400_000
    + b"1]}",
    b"#fields" + b"\tts" * 300_000,
    b"#separator \\xZZ",
    b"\n",
]
"""Records that have broken parsers elsewhere; each a mebibyte at most."""

POINTS = [pytest.param(point, id=point.name) for point in entry_points(group="cityward.collectors")]


def _part(point: EntryPoint) -> Any:
    part = point.load()
    if part.cityward_spec.framing == "packets":
        pytest.skip("captures have tests of their own")
    return part


def _check(point: EntryPoint, seed: int, count: int) -> None:
    part = _part(point)
    samples = SAMPLES.get(point.name, [b'{"time": "2026-01-01T00:00:00Z", "value": 1}'])
    for sample in samples:
        given = records([sample, *mutants(sample, seed, count // len(samples))])

        found = run(part, given)

        for record, events in zip(given, found, strict=True):
            assert broken_promises(record, events) == [], record.data[:2_000]


@pytest.mark.parametrize("point", POINTS)
def test_a_good_record_of_each_collector_is_read(point: EntryPoint) -> None:
    part = _part(point)
    given = records(SAMPLES.get(point.name, []))
    if not given:
        pytest.skip("no sample")

    found = list((part() if isinstance(part, type) else part)(given))

    assert not [event.fields["event.reason"] for event in found if event.is_malformed]


@pytest.mark.parametrize("point", POINTS)
def test_records_that_broke_other_parsers_become_events(point: EntryPoint) -> None:
    given = records(FIXED)

    found = run(_part(point), given)

    for record, events in zip(given, found, strict=True):
        assert broken_promises(record, events) == [], record.data[:200]


@pytest.mark.parametrize("point", POINTS)
def test_damaged_records_become_events_that_keep_all_promises(point: EntryPoint) -> None:
    _check(point, seed=1, count=300)


@pytest.mark.slow
@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("point", POINTS)
def test_many_damaged_records_become_events_that_keep_all_promises(
    point: EntryPoint, count: int
) -> None:
    _check(point, seed=2, count=count)


@pytest.mark.parametrize("point", POINTS)
def test_the_same_records_give_the_same_events(point: EntryPoint) -> None:
    part = _part(point)
    given = records(mutants(SAMPLES.get(point.name, [b"x"])[0], 3, 100))

    assert run(part, given) == run(part, given)
