# The header, CMake and the newest entry of the changelog name one version.
# cmake -DSOURCE=<root> -DCMAKE_SAYS=<PROJECT_VERSION> -P version_agrees.cmake
cmake_minimum_required(VERSION 3.21)
include(${SOURCE}/cmake/version.cmake)
sluice_read_version(${SOURCE}/include/sluice/version.hpp header_says)
file(STRINGS ${SOURCE}/CHANGELOG.md entries REGEX "^## ")
list(GET entries 0 newest)
if(NOT newest MATCHES "^## ([0-9]+[.][0-9]+[.][0-9]+)( |$)")
  message(FATAL_ERROR "the newest entry of CHANGELOG.md names no version: ${newest}")
endif()
set(changelog_says ${CMAKE_MATCH_1})
if(NOT header_says STREQUAL CMAKE_SAYS OR NOT header_says STREQUAL changelog_says)
  message(FATAL_ERROR "version.hpp says ${header_says}, CMake ${CMAKE_SAYS}, CHANGELOG.md ${changelog_says}")
endif()
