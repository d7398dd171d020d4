# The target `docs`: the API reference as pages to read in a browser, beside the documents and examples that they link to.
find_package(Doxygen 1.9.4 REQUIRED)
find_program(SLUICE_AWK NAMES awk gawk mawk REQUIRED)
mark_as_advanced(SLUICE_AWK)

set(SLUICE_DOCS_DIR ${PROJECT_BINARY_DIR}/docs)
file(GLOB_RECURSE pages CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/*.md)
list(APPEND pages ${PROJECT_SOURCE_DIR}/CONTRIBUTING.md ${PROJECT_SOURCE_DIR}/CHANGELOG.md)
list(TRANSFORM pages REPLACE "(.+)" "\"\\1\"")
list(JOIN pages " " SLUICE_DOCS_PAGES)
configure_file(${PROJECT_SOURCE_DIR}/cmake/docs/Doxyfile.in ${PROJECT_BINARY_DIR}/Doxyfile @ONLY)

add_custom_target(docs
  COMMAND ${CMAKE_COMMAND} -E rm -rf ${SLUICE_DOCS_DIR}
  COMMAND ${CMAKE_COMMAND} -E copy_directory ${PROJECT_SOURCE_DIR}/examples ${SLUICE_DOCS_DIR}/examples
  COMMAND ${CMAKE_COMMAND} -E copy ${PROJECT_SOURCE_DIR}/LICENSE ${SLUICE_DOCS_DIR}
  COMMAND Doxygen::doxygen ${PROJECT_BINARY_DIR}/Doxyfile
  COMMAND ${CMAKE_COMMAND} -E echo "The reference: ${SLUICE_DOCS_DIR}/reference/index.html"
  USES_TERMINAL VERBATIM)
