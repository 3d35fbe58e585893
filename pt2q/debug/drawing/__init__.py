"""Pictures of graphs: Graphviz, and data for Model Explorer."""
