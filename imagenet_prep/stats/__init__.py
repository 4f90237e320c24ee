"""The statistics stage: crops to the mean image and the colour basis."""
