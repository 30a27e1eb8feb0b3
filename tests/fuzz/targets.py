"""All targets, by name."""

from tests.fuzz import compression, dicom, files, messages, models, pairs, provisioning, releases

TARGETS = {
    **messages.TARGETS,
    **files.TARGETS,
    **pairs.TARGETS,
    **dicom.TARGETS,
    **models.TARGETS,
    **compression.TARGETS,
    **provisioning.TARGETS,
    **releases.TARGETS,
}
