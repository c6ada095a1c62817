"""The vocabulary of cityward: what every room speaks, and what a third party imports."""

from cityward.asset import Asset
from cityward.command import Command, State, Target
from cityward.errors import (
    CitywardError,
    ConfigError,
    InputError,
    PluginError,
    RuleError,
    TransientError,
    Unsafe,
)
from cityward.event import Event, LogSource, Record, utc
from cityward.finding import Analytic, Check, Finding, Why
from cityward.plugin import Actuator, Decoder, Detector, Session, actuator, collector, decoder

__all__ = [
    "Actuator",
    "Analytic",
    "Asset",
    "Check",
    "CitywardError",
    "Command",
    "ConfigError",
    "Decoder",
    "Detector",
    "Event",
    "Finding",
    "InputError",
    "LogSource",
    "PluginError",
    "Record",
    "RuleError",
    "Session",
    "State",
    "Target",
    "TransientError",
    "Unsafe",
    "Why",
    "actuator",
    "collector",
    "decoder",
    "utc",
]
