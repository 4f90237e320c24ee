"""The commands of imagenet-prep."""
