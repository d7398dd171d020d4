# Installs what a build of this checkout needs, before project() looks for any of it.
#
# Used by the presets `demo`, `test`, `bench` and `docs` (SLUICE_BOOTSTRAP=ON), so that a machine with nothing but git, cmake and
# a C++ compiler can go on: not even a build tool is there, and it has to be found by project(). A requirement is looked for by
# the file that the build will use, so a copy installed by hand counts. If nothing is missing, no package manager is called.
# Where apt-get and the rights to use it are there, the missing packages are installed; otherwise the build stops and prints
# the command to run.
if(NOT SLUICE_BOOTSTRAP)
  return()
endif()

if(NOT DEFINED SLUICE_BOOTSTRAP_PREFIXES)
  set(SLUICE_BOOTSTRAP_PREFIXES /usr /usr/local /opt/homebrew /opt/local)
endif()

# sluice_bootstrap_need(<package> [OPTIONAL] (PROGRAM|HEADER) <name>...): any one of the names will do.
function(sluice_bootstrap_need package)
  cmake_parse_arguments(PARSE_ARGV 1 need "OPTIONAL" "" "PROGRAM;HEADER")
  if(need_PROGRAM)
    find_program(found NAMES ${need_PROGRAM} NO_CACHE)
  else()
    # Nothing is known about the platform before project(), so the usual places are spelled out.
    set(folders ${CMAKE_PREFIX_PATH} ${SLUICE_BOOTSTRAP_PREFIXES})
    list(TRANSFORM folders APPEND /include)
    find_path(found NAMES ${need_HEADER} PATHS ${folders} PATH_SUFFIXES eigen3 NO_CACHE NO_DEFAULT_PATH)
  endif()
  if(NOT found)
    if(need_OPTIONAL)
      list(APPEND sluice_bootstrap_wanted ${package})
    else()
      list(APPEND sluice_bootstrap_missing ${package})
    endif()
  endif()
  set(sluice_bootstrap_wanted "${sluice_bootstrap_wanted}" PARENT_SCOPE)
  set(sluice_bootstrap_missing "${sluice_bootstrap_missing}" PARENT_SCOPE)
endfunction()

set(sluice_bootstrap_missing "")
set(sluice_bootstrap_wanted "")
if(NOT CMAKE_CXX_COMPILER AND NOT DEFINED ENV{CXX})
  sluice_bootstrap_need(g++ PROGRAM c++ g++ clang++)
endif()
if(CMAKE_GENERATOR MATCHES "Ninja" AND NOT CMAKE_MAKE_PROGRAM)
  sluice_bootstrap_need(ninja-build PROGRAM ninja ninja-build samu)
endif()
sluice_bootstrap_need(libeigen3-dev HEADER Eigen/Core)
sluice_bootstrap_need(libxsimd-dev HEADER xsimd/xsimd.hpp)
sluice_bootstrap_need(nlohmann-json3-dev HEADER nlohmann/json.hpp)
sluice_bootstrap_need(libtbb-dev OPTIONAL HEADER tbb/parallel_for.h)
if(SLUICE_BUILD_EXAMPLES OR SLUICE_BUILD_TESTS OR SLUICE_BUILD_BENCH)
  sluice_bootstrap_need(libcli11-dev HEADER CLI/CLI.hpp)
endif()
if(SLUICE_BUILD_TESTS)
  sluice_bootstrap_need(catch2 HEADER catch2/catch.hpp catch2/catch_all.hpp)
  sluice_bootstrap_need(pkg-config PROGRAM pkg-config pkgconf)
endif()
if(SLUICE_BUILD_BENCH)
  sluice_bootstrap_need(libbenchmark-dev HEADER benchmark/benchmark.h)
  sluice_bootstrap_need(libdnnl-dev OPTIONAL HEADER dnnl.h)
endif()

if(SLUICE_BUILD_DOCS)
  sluice_bootstrap_need(doxygen PROGRAM doxygen)
endif()

set(sluice_bootstrap_packages ${sluice_bootstrap_missing} ${sluice_bootstrap_wanted})
if(NOT sluice_bootstrap_packages)
  return()
endif()
list(JOIN sluice_bootstrap_packages " " sluice_bootstrap_line)
list(JOIN sluice_bootstrap_missing " " sluice_bootstrap_missing_line)

# The rights: root, or a sudo that asks for no password (a question would hang a build that nobody watches).
find_program(sluice_apt_get apt-get NO_CACHE)
set(sluice_as_root NOTFOUND)
if(sluice_apt_get)
  execute_process(COMMAND id -u OUTPUT_VARIABLE sluice_uid OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(sluice_uid STREQUAL "0")
    set(sluice_as_root ${CMAKE_COMMAND} -E env)
  else()
    find_program(sluice_sudo sudo NO_CACHE)
    if(sluice_sudo)
      execute_process(COMMAND ${sluice_sudo} -n true RESULT_VARIABLE sluice_sudo_result OUTPUT_QUIET ERROR_QUIET)
      if(sluice_sudo_result EQUAL 0)
        set(sluice_as_root ${sluice_sudo} -n ${CMAKE_COMMAND} -E env)
      endif()
    endif()
  endif()
endif()

if(NOT sluice_as_root)
  if(NOT sluice_bootstrap_missing)
    return() # only optional ones are absent
  endif()
  if(sluice_apt_get)
    message(FATAL_ERROR "sluice needs packages that are not installed, and this user may not install them. Run\n"
      "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${sluice_bootstrap_line}\n"
      "and start again.")
  endif()
  message(FATAL_ERROR "sluice needs libraries or tools that were not found, and there is no apt-get here. By their Debian names:\n"
    "  ${sluice_bootstrap_missing_line}\n"
    "Install them with this system's package manager (or name their prefix in CMAKE_PREFIX_PATH) and start again.")
endif()

message(STATUS "sluice: installing ${sluice_bootstrap_line}")
set(sluice_apt ${sluice_as_root} DEBIAN_FRONTEND=noninteractive ${sluice_apt_get} -q -o DPkg::Lock::Timeout=300)
execute_process(COMMAND ${sluice_apt} update RESULT_VARIABLE sluice_update_result)
execute_process(COMMAND ${sluice_apt} install -y --no-install-recommends ${sluice_bootstrap_packages}
                RESULT_VARIABLE sluice_install_result)
if(NOT sluice_install_result EQUAL 0)
  if(NOT sluice_bootstrap_missing)
    message(STATUS "sluice: ${sluice_bootstrap_line} could not be installed; going on without")
    return()
  endif()
  message(FATAL_ERROR "apt-get could not install what sluice needs (its message is above). When it is mended, run\n"
    "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${sluice_bootstrap_line}\n"
    "and start again.")
endif()
