"""`cityward bench hub` measures the real channel."""

from __future__ import annotations

import json

import pytest

from siem import cli


@pytest.mark.slow
def test_a_hub_is_measured_over_the_real_channel(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("siem.hub_bench.rows.__defaults__", ((2,), 0.5))
    monkeypatch.chdir(tmp_path)

    assert cli.run(["bench", "hub", "--seconds", "0.5", "-o", "json"]) == 0

    (row,) = json.loads(capsys.readouterr().out)
    assert (row["home"], row["operators"]) == ("sqlite", 2)
    assert row["shares"] > 0
    assert row["median_ms"] <= row["p95_ms"]
