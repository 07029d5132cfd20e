# The two macros of Slicer that a scripted module calls.

if("${PROJECT_NAME}" STREQUAL "" OR "${PROJECT_NAME}" STREQUAL "Project")
  message(FATAL_ERROR "project(<extension name>) must come before include(\${Slicer_USE_FILE})")
endif()
set(EXTENSION_NAME "${PROJECT_NAME}")

# Slicer falls back to its own files here.
foreach(name LICENSE README)
  if(NOT DEFINED EXTENSION_${name}_FILE)
    message(SEND_ERROR "EXTENSION_${name}_FILE is not set: the package would carry Slicer's")
  endif()
endforeach()

# The names of the tests that the extension registers, one a line.
set(STUB_TESTS "${CMAKE_BINARY_DIR}/python_unittests.txt")
file(WRITE "${STUB_TESTS}" "")
include(CTest) # defines BUILD_TESTING, as UseSlicer.cmake does

# Copies the listed files into the build tree when it is built. As in Slicer, installing takes the whole folder,
# listed or not: what else lies there is shipped.
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(STUB "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(STUB_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: unknown ${STUB_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT STUB_NAME OR NOT STUB_SCRIPTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: NAME and SCRIPTS are mandatory")
  endif()
  set(STUB_COPIES)
  foreach(file IN LISTS STUB_SCRIPTS STUB_RESOURCES)
    set(source "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
    if(NOT EXISTS "${source}")
      message(FATAL_ERROR "slicerMacroBuildScriptedModule: ${STUB_NAME} lists a file that does not exist: ${file}")
    endif()
    if("${copy_of_${file}}" STREQUAL "${source}")
      message(FATAL_ERROR "slicerMacroBuildScriptedModule: ${STUB_NAME} lists a file twice: ${file}")
    endif()
    set("copy_of_${file}" "${source}")
    set(copy "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${file}")
    add_custom_command(OUTPUT "${copy}" DEPENDS "${source}" COMMENT "Copying ${file}" VERBATIM
      COMMAND ${CMAKE_COMMAND} -E copy "${source}" "${copy}")
    list(APPEND STUB_COPIES "${copy}")
  endforeach()
  add_custom_target(Copy${STUB_NAME}Files ALL DEPENDS ${STUB_COPIES})
  install(DIRECTORY "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/"
    DESTINATION "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}" COMPONENT RuntimeLibraries USE_SOURCE_PERMISSIONS)
  if(BUILD_TESTING AND STUB_WITH_GENERIC_TESTS)
    file(APPEND "${STUB_TESTS}" "nomainwindow_qSlicer${STUB_NAME}ModuleGenericTest\n")
  endif()
endmacro()

# Records a test. Slicer imports it by the name of its file, so two of one name cannot be told apart.
macro(slicer_add_python_unittest)
  cmake_parse_arguments(STUB "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  get_filename_component(STUB_TEST "${STUB_SCRIPT}" NAME_WE)
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${STUB_SCRIPT}")
    message(FATAL_ERROR "slicer_add_python_unittest: no file ${CMAKE_CURRENT_SOURCE_DIR}/${STUB_SCRIPT}")
  endif()
  add_test(NAME "py_${STUB_TESTNAME_PREFIX}${STUB_TEST}" COMMAND ${CMAKE_COMMAND} -E true)
  file(APPEND "${STUB_TESTS}" "${STUB_TESTNAME_PREFIX}${STUB_TEST}\n")
endmacro()
