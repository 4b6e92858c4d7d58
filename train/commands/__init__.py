"""The commands of `s4nd` that are not training, one file each."""

__all__ = ["compare", "convert", "doctor", "export", "hub", "models", "report", "watch"]
