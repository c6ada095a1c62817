"""Responses: playbooks, the gate, the journal of runs, and actuators that undo what they do."""
