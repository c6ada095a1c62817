"""One protocol per file: bytes in order in, fields of events out (`cityward.plugin.Decoder`).

No decoders are those that several use – `pairs` (requests and answers, words for events), `ber`,
`certificate`, `default_logins` – the layers `cotp`, `cip` and `websocket`, and the tables whose
names end in `_names`.
"""
