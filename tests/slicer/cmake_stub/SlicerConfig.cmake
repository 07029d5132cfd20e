# Stands in for the SlicerConfig.cmake of a Slicer build, so that plain CMake can build and install the extension.
# Written from what Slicer 5.13 documents; it knows files and folders only, no compilers and no application.
#
#   cmake -S . -B BUILD -DSlicer_DIR=tests/slicer/cmake_stub -DPython3_EXECUTABLE=$(which python3)

# Where a build tree and an install tree of Slicer 5.13 keep scripted modules on Linux.
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/Slicer-5.13/qt-scripted-modules")
set(Slicer_INSTALL_ROOT "./")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "${Slicer_INSTALL_ROOT}${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")

set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/CPack.cmake")
