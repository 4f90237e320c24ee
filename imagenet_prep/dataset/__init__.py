"""What passes between the stages: class list, statistics, journal, manifest, shards."""
