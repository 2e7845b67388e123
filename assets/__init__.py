"""The embedded models: read with `importlib.resources.files("multispec.assets")`."""
