"""Sigma rules, correlations and filters: `load_folder` a rule set, give it to an `Engine`.

rules = load_folder(Path("rules"))
engine = Engine(rules, placeholders={"ot_writers": ["10.1.0.5"]})
for finding in engine.detect(events): …
"""
