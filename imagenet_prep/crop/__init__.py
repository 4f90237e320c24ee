"""The crop stage: raw images to 256x256 crops."""
