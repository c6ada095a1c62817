"""OpenSearch 2 as a home: the only file that knows its client."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opensearchpy import JSONSerializer, OpenSearch
from opensearchpy.exceptions import (
    ConflictError,
    ConnectionTimeout,
    SerializationError,
    SSLError,
    TransportError,
)
from opensearchpy.exceptions import ConnectionError as Unreachable

from cityward.errors import ConfigError, TransientError
from siem.store.protocol import Conflict
from siem.store.protocol_cluster import Health, Kind
from siem.store.rest import RestCluster, encode, path_of, said_of

CONNECTIONS = 4
"""Kept open at most: two bulk requests on their way, and those who read."""


class _Json(JSONSerializer):  # type: ignore[misc, unused-ignore]
    """Encodes by msgspec and leaves answers as they came: who asked knows their form."""

    def dumps(self, data: Any) -> Any:
        return data if isinstance(data, bytes | str) else encode(data)

    def loads(self, s: str) -> Any:
        return s


class OpenSearchCluster(RestCluster):
    """Fulfils `protocol_cluster.Cluster`; any thread may ask."""

    kind: Kind = "opensearch"

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        user: str = "",
        password: str = "",
        ca: Path | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Take up connections; nothing is asked yet.

        Args:
            hosts: URLs of its nodes.
            user: Name of an account; empty: none.
            password: Its password.
            ca: Certificates that vouch for the nodes; None: those of the machine.
            timeout_s: For each answer.

        Raises:
            ConfigError: the file of certificates cannot be read.
        """
        super().__init__(hosts)
        options: dict[str, Any] = {"http_auth": (user, password)} if user else {}
        if any(host.startswith("https:") for host in self.hosts):
            options["ssl_context"] = _trust(ca)
        # What fails is told to the caller, who counts it; the client would log every attempt.
        logging.getLogger("opensearch").setLevel(logging.CRITICAL)
        self._client = OpenSearch(
            self.hosts,
            timeout=timeout_s,
            max_retries=0,
            retry_on_timeout=False,
            pool_maxsize=CONNECTIONS,
            serializer=_Json(),
            **options,
        )

    def open_pit(self, index: str, keep_alive_s: int = 60) -> str | None:
        """Id of a point in time; None if there are no such indices."""
        if not self.indices(index):
            return None
        path = f"/{path_of(index)}/_search/point_in_time"
        found = self._ask("POST", path, params={"keep_alive": f"{keep_alive_s}s"}, missing={})
        return str(found["pit_id"]) if found else None

    def close_pit(self, pit: str) -> None:
        """Let go of it."""
        self._ask("DELETE", "/_search/point_in_time", {"pit_id": [pit]}, missing={})

    def health(self) -> Health:
        """State and version.

        Raises:
            ConfigError: it is another kind of server.
        """
        version = self._ask("GET", "/").get("version", {})
        if (made := version.get("distribution", "elasticsearch")) != "opensearch":
            raise ConfigError(
                f"this is {made}, no OpenSearch",
                self._where,
                f'Set kind = "{made}" if you mean it.',
            )
        status = self._ask("GET", "/_cluster/health")["status"]
        return Health(status, f"opensearch {version['number']}")

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        with self._telling():
            said: str = self._client.transport.perform_request(
                method, path, params=dict(params or {}), body=body, headers=headers
            )
            return said

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Errors of the client as ours."""
        try:
            yield
        except ConflictError as error:
            raise Conflict("another version is there", self._where, "Read it again.") from error
        except SSLError as error:
            raise ConfigError(
                f"the cluster's certificate is not trusted: {error.error}",
                self._where,
                "Name its authority in ca_file.",
            ) from error
        except ConnectionTimeout as error:
            raise TransientError(
                "the cluster does not answer in time", self._where, "Look whether it is well."
            ) from error
        except Unreachable as error:
            raise TransientError(
                f"the cluster cannot be reached: {error.error}", self._where, "See if it runs."
            ) from error
        except TransportError as error:
            raise self._meant(error.status_code, said_of(error.info, error.error)) from error
        except SerializationError as error:
            raise TransientError(
                f"the cluster's answer cannot be read: {error}", self._where, "Try again."
            ) from error


def _trust(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"no certificates: {error}", str(ca), "Check the file.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
