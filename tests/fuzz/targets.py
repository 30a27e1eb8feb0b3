"""All targets, by name."""

from tests.fuzz import files, messages, models

TARGETS = {**messages.TARGETS, **files.TARGETS, **models.TARGETS}
