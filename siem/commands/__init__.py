"""The nouns of the `cityward` command, each loaded when it is used."""
