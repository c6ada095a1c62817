"""Logins that devices leave the factory with, as worms and scanners try them.

What somebody typed is compared with them and forgotten: an event says only that it was one of them.

References:
    Mirai source code as published in 2016, scanner.c (facts: the pairs that it tries).
    Manuals of routers, cameras and controllers; CISA ICS-CERT advisories on default passwords.
"""

from __future__ import annotations

_PAIRS = """
666666/666666 888888/888888 Administrator/admin USER/USER admin/ admin/1111 admin/1111111
admin/1234 admin/12345 admin/123456 admin/4321 admin/54321 admin/7ujMko0admin admin/admin
admin/admin1234 admin/default admin/meinsm admin/pass admin/password admin/smcadmin
admin1/password administrator/1234 administrator/administrator anonymous/anonymous cisco/cisco
daemon/daemon default/ default/default default/S2fGqNFs ftp/ftp fwupgrade/fwupgrade guest/12345
guest/guest ntpupdate/ntpupdate operator/operator pcfactory/pcfactory pi/raspberry root/
root/00000000 root/1111 root/1234 root/12345 root/123456 root/54321 root/666666 root/7ujMko0admin
root/7ujMko0vizxv root/888888 root/Zte521 root/admin root/anko root/default root/dreambox
root/hi3518 root/ikwb root/juantech root/jvbzd root/klv123 root/klv1234 root/pass root/password
root/realtek root/root root/system root/user root/vizxv root/xc3511 root/xmhdipc root/zlxx.
service/service supervisor/supervisor support/support sysdiag/factorycast@schneider tech/tech
telnetadmin/telnetadmin test/test ubnt/ubnt user/user vstarcam2015/20150602 wago/wago
"""
DEFAULT_LOGINS = frozenset(tuple(pair.split("/", 1)) for pair in _PAIRS.split())


def is_default_login(user: str, password: str) -> bool:
    """Whether a device may have left the factory with this login."""
    return (user, password) in DEFAULT_LOGINS
