"""The parts of the module SemanticGANSlicer. Nothing here imports torch: the engine runs in a process of its own."""
