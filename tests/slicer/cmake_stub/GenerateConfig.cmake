# Slicer writes <Extension>Config.cmake here, for extensions that depend on this one. A scripted module exports nothing.
