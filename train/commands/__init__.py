"""The commands of `s4nd` that are not training, one file each."""
