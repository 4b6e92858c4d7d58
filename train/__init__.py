"""Training and evaluation of timm models, S4ND's own and others, at one resolution or several."""

if __name__ != "s4nd.train":
    raise ImportError(f"this package is s4nd.train, got imported as {__name__!r}: import it under its own name")

# Modules, which are imported as they are needed: a command does not wait for all of them.
__all__ = ["checkpoint", "commands", "config", "data", "engine", "evaluate", "resolution", "task"]
