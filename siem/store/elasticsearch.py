"""Elasticsearch 9 as a home: the only file that knows its client.

Queries, templates and documents are those of OpenSearch; what differs is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from elastic_transport import Serializer
from elasticsearch import ApiError, ConflictError, Elasticsearch, TransportError
from elasticsearch.exceptions import ConnectionTimeout, SSLError, UnsupportedProductError

from cityward.errors import ConfigError, TransientError
from siem.store.protocol import Conflict
from siem.store.protocol_cluster import Health, Kind
from siem.store.rest import ABSENT, RestCluster, encode, path_of, said_of

TYPES = {"flat_object": "flattened"}
"""Types of a mapping that have another name than in OpenSearch."""
_JSON = {"content-type": "application/json"}
_ANSWER = {"accept": "application/json"}


class _Raw(Serializer):
    """Encodes by msgspec and leaves answers as they came: who asked knows their form."""

    def dumps(self, data: Any) -> bytes:
        return data if isinstance(data, bytes) else encode(data)

    def loads(self, data: bytes) -> Any:
        return data


_SERIALIZERS = dict.fromkeys(
    (
        "application/json",
        "application/x-ndjson",
        "application/vnd.elasticsearch+json",
        "application/vnd.elasticsearch+x-ndjson",
    ),
    _Raw(),
)


class ElasticsearchCluster(RestCluster):
    """Fulfils `protocol_cluster.Cluster`; any thread may ask."""

    kind: Kind = "elasticsearch"

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
        """
        super().__init__(hosts)
        options: dict[str, Any] = {"ca_certs": str(ca)} if ca else {}
        if user:
            options["basic_auth"] = (user, password)
        # Trying again is for the caller, who knows what may be repeated.
        self._client = Elasticsearch(
            self.hosts,
            request_timeout=timeout_s,
            max_retries=0,
            retry_on_timeout=False,
            serializers=_SERIALIZERS,
            **options,
        )

    def open_pit(self, index: str, keep_alive_s: int = 60) -> str | None:
        """Id of a point in time; None if there are no such indices."""
        if not self.indices(index):
            return None
        params = ABSENT | {"keep_alive": f"{keep_alive_s}s"}
        found = self._ask("POST", f"/{path_of(index)}/_pit", params=params, missing={})
        return str(found["id"]) if found else None

    def close_pit(self, pit: str) -> None:
        """Let go of it."""
        self._ask("DELETE", "/_pit", {"id": pit}, missing={})

    def put_template(self, name: str, body: Mapping[str, Any]) -> None:
        """Write a composable index template; types get the names they have here."""
        super().put_template(name, renamed(body))

    def health(self) -> Health:
        """State and version."""
        version = self._ask("GET", "/")["version"]["number"]
        return Health(self._ask("GET", "/_cluster/health")["status"], f"elasticsearch {version}")

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
    ) -> bytes:
        # The client says which version of the interface is meant, in these very headers.
        sent = _ANSWER if body is None else {**_JSON, **_ANSWER, **(headers or {})}
        try:
            found = self._client.perform_request(
                method, path, params=params, headers=sent, body=body
            )
        except ConflictError as error:
            raise Conflict("another version is there", self._where, "Read it again.") from error
        except UnsupportedProductError as error:
            raise ConfigError(
                "this is no Elasticsearch", self._where, 'Set kind = "opensearch" if it is one.'
            ) from error
        except ApiError as error:
            raise self._meant(error.status_code, said_of(_info(error), error)) from error
        except SSLError as error:
            raise ConfigError(
                f"the cluster's certificate is not trusted: {error}",
                self._where,
                "Name its authority in ca_file.",
            ) from error
        except ConnectionTimeout as error:
            raise TransientError(
                "the cluster does not answer in time", self._where, "Look whether it is well."
            ) from error
        except TransportError as error:
            raise TransientError(
                f"the cluster cannot be reached: {error}", self._where, "See if it runs."
            ) from error
        return found.body or b""


def _info(error: ApiError) -> Any:
    """What an error says, decoded."""
    try:
        return msgspec.json.decode(error.body)
    except (msgspec.DecodeError, TypeError):
        return None


def renamed(body: Any) -> Any:
    """A mapping with the names that types have in Elasticsearch."""
    if isinstance(body, Mapping):
        return {
            key: TYPES.get(value, value)
            if key == "type" and isinstance(value, str)
            else renamed(value)
            for key, value in body.items()
        }
    return [renamed(one) for one in body] if isinstance(body, list | tuple) else body
