"""The program: operators, graph access, storage, control flow, the module, its modes, verifying."""
