"""The commands of trainer."""
