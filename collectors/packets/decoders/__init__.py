"""One protocol per file: bytes in order in, fields of events out (`cityward.plugin.Decoder`).

No decoders are those that several use – `pairs` (requests and answers, words for events), `framed`
(the loop over frames), `ber`, `certificate`, `default_logins` – the layers `cotp`, `cip`,
`iec61850` and `websocket`, and the tables whose names end in `_names`.
"""
