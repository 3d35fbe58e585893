"""An extension for Model Explorer, which looks for a package with a module `main`."""
