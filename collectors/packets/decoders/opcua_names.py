"""Names of OPC UA: services by the number of their binary encoding, status codes.

References:
    OPC 10000-6 (1.05), annex A: NodeIds.csv and StatusCode.csv of the OPC Foundation.
"""

from __future__ import annotations

from typing import NamedTuple


class Service(NamedTuple):
    """What a service does."""

    name: str
    operation: str
    is_command: bool = False


SERVICE_FAULT = 397
"""Encoding of the answer that says that the whole request failed."""

REQUESTS: dict[int, Service] = {
    422: Service("find_servers", "discovery"),
    428: Service("get_endpoints", "discovery"),
    437: Service("register_server", "config", True),
    446: Service("open_secure_channel", "session"),
    452: Service("close_secure_channel", "session"),
    461: Service("create_session", "session"),
    467: Service("activate_session", "auth"),
    473: Service("close_session", "session"),
    479: Service("cancel", "session"),
    488: Service("add_nodes", "config", True),
    494: Service("add_references", "config", True),
    500: Service("delete_nodes", "config", True),
    506: Service("delete_references", "config", True),
    527: Service("browse", "discovery"),
    533: Service("browse_next", "discovery"),
    554: Service("translate_browse_paths", "discovery"),
    560: Service("register_nodes", "session"),
    566: Service("unregister_nodes", "session"),
    615: Service("query_first", "read"),
    621: Service("query_next", "read"),
    631: Service("read", "read"),
    664: Service("history_read", "read"),
    673: Service("write", "write", True),
    700: Service("history_update", "write", True),
    712: Service("call", "control", True),
    751: Service("create_monitored_items", "session"),
    763: Service("modify_monitored_items", "session"),
    769: Service("set_monitoring_mode", "session"),
    775: Service("set_triggering", "session"),
    781: Service("delete_monitored_items", "session"),
    787: Service("create_subscription", "session"),
    793: Service("modify_subscription", "session"),
    799: Service("set_publishing_mode", "session"),
    826: Service("publish", "report"),
    832: Service("republish", "report"),
    841: Service("transfer_subscriptions", "session"),
    847: Service("delete_subscriptions", "session"),
    12_208: Service("find_servers_on_network", "discovery"),
    12_211: Service("register_server2", "config", True),
}
RESPONSES: dict[int, Service] = {
    **{number + (3 if number < 12_000 else 1): of for number, of in REQUESTS.items()},
    SERVICE_FAULT: Service("service_fault", "session"),
}

IDENTITIES: dict[int, str] = {
    321: "anonymous",
    324: "user_name",
    327: "certificate",
    940: "issued_token",
}
SECURITY_MODES = {0: "invalid", 1: "none", 2: "sign", 3: "sign_and_encrypt"}

STATUS: dict[int, str] = {
    0x8001: "bad_unexpected_error",
    0x8002: "bad_internal_error",
    0x8003: "bad_out_of_memory",
    0x8004: "bad_resource_unavailable",
    0x8005: "bad_communication_error",
    0x8006: "bad_encoding_error",
    0x8007: "bad_decoding_error",
    0x8008: "bad_encoding_limits_exceeded",
    0x8009: "bad_unknown_response",
    0x800A: "bad_timeout",
    0x800B: "bad_service_unsupported",
    0x800C: "bad_shutdown",
    0x800D: "bad_server_not_connected",
    0x800E: "bad_server_halted",
    0x800F: "bad_nothing_to_do",
    0x8010: "bad_too_many_operations",
    0x8011: "bad_data_type_id_unknown",
    0x8012: "bad_certificate_invalid",
    0x8013: "bad_security_checks_failed",
    0x8014: "bad_certificate_time_invalid",
    0x8015: "bad_certificate_issuer_time_invalid",
    0x8016: "bad_certificate_host_name_invalid",
    0x8017: "bad_certificate_uri_invalid",
    0x8018: "bad_certificate_use_not_allowed",
    0x801A: "bad_certificate_untrusted",
    0x801D: "bad_certificate_revoked",
    0x801F: "bad_user_access_denied",
    0x8020: "bad_identity_token_invalid",
    0x8021: "bad_identity_token_rejected",
    0x8022: "bad_secure_channel_id_invalid",
    0x8023: "bad_invalid_timestamp",
    0x8024: "bad_nonce_invalid",
    0x8025: "bad_session_id_invalid",
    0x8026: "bad_session_closed",
    0x8027: "bad_session_not_activated",
    0x8028: "bad_subscription_id_invalid",
    0x802A: "bad_request_header_invalid",
    0x8031: "bad_no_communication",
    0x8032: "bad_waiting_for_initial_data",
    0x8033: "bad_node_id_invalid",
    0x8034: "bad_node_id_unknown",
    0x8035: "bad_attribute_id_invalid",
    0x8036: "bad_index_range_invalid",
    0x8037: "bad_index_range_no_data",
    0x8038: "bad_data_encoding_invalid",
    0x8039: "bad_data_encoding_unsupported",
    0x803A: "bad_not_readable",
    0x803B: "bad_not_writable",
    0x803C: "bad_out_of_range",
    0x803D: "bad_not_supported",
    0x803E: "bad_not_found",
    0x803F: "bad_object_deleted",
    0x8040: "bad_not_implemented",
    0x8054: "bad_security_mode_rejected",
    0x8055: "bad_security_policy_rejected",
    0x8056: "bad_too_many_sessions",
    0x8057: "bad_user_signature_invalid",
    0x8058: "bad_application_signature_invalid",
    0x8059: "bad_no_valid_certificates",
    0x805E: "bad_node_id_exists",
    0x805F: "bad_node_class_invalid",
    0x8060: "bad_browse_name_invalid",
    0x8061: "bad_browse_name_duplicated",
    0x8073: "bad_write_not_supported",
    0x8074: "bad_type_mismatch",
    0x8075: "bad_method_invalid",
    0x8076: "bad_arguments_missing",
    0x8077: "bad_too_many_subscriptions",
    0x8078: "bad_too_many_publish_requests",
    0x8079: "bad_no_subscription",
    0x807A: "bad_sequence_number_unknown",
    0x807D: "bad_tcp_server_too_busy",
    0x807E: "bad_tcp_message_type_invalid",
    0x807F: "bad_tcp_secure_channel_unknown",
    0x8080: "bad_tcp_message_too_large",
    0x8081: "bad_tcp_not_enough_resources",
    0x8082: "bad_tcp_internal_error",
    0x8083: "bad_tcp_endpoint_url_invalid",
    0x8084: "bad_request_interrupted",
    0x8085: "bad_request_timeout",
    0x8086: "bad_secure_channel_closed",
    0x8087: "bad_secure_channel_token_unknown",
    0x8088: "bad_sequence_number_invalid",
    0x80AC: "bad_connection_rejected",
    0x80AE: "bad_connection_closed",
    0x80AF: "bad_invalid_state",
}


def status_name(code: int) -> str:
    """Name of a status code, in snake case; its number where we have no name."""
    return STATUS.get(code >> 16) or f"status_0x{code:08x}"
