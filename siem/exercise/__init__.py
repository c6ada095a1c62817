"""The exercise: a labelled evening of an invented city, played into real nodes."""
