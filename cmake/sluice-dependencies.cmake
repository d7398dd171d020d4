# What sluice's targets need. Included by the build and by the installed sluice-config.cmake, so the two cannot drift.
#
# Afterwards: Eigen3::Eigen, sluice::xsimd, and, where the library behind each was found, the variables
# SLUICE_HAVE_IO, SLUICE_HAVE_THREADS, SLUICE_HAVE_OPENMP, SLUICE_HAVE_TBB. sluice_add_conveniences() then makes sluice::io,
# sluice::threads, sluice::openmp and sluice::tbb from them, once sluice::sluice exists.

# A target that is there already (of the project that holds sluice, or by FetchContent) is taken as it is. Neither it nor a project
# that stands in for a package need say its version; the headers look once more.
if(NOT TARGET Eigen3::Eigen)
  find_package(Eigen3 CONFIG REQUIRED) # unversioned: 3.4 and 5.x refuse each other's number
  if(Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS 3.4)
    message(FATAL_ERROR "sluice needs Eigen 3.4 or newer, found ${Eigen3_VERSION}")
  endif()
endif()

if(NOT TARGET sluice::xsimd)
  if(NOT TARGET xsimd)
    find_package(xsimd CONFIG REQUIRED)
    if(xsimd_VERSION AND xsimd_VERSION VERSION_LESS 8.1)
      message(FATAL_ERROR "sluice needs xsimd 8.1 or newer, found ${xsimd_VERSION}")
    endif()
  endif()
  # Headers only: xsimd 8.1's own target asks to link a library `xtl` that need not exist.
  # Eigen's folders, too, are SYSTEM wherever these are, also where Eigen is a project in the user's build.
  get_target_property(_sluice_xsimd_dirs xsimd INTERFACE_INCLUDE_DIRECTORIES)
  get_target_property(_sluice_eigen_dirs Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
  add_library(sluice::xsimd INTERFACE IMPORTED ${SLUICE_IMPORTED_SCOPE})
  foreach(_sluice_dirs IN ITEMS "${_sluice_xsimd_dirs}" "${_sluice_eigen_dirs}")
    if(_sluice_dirs)
      target_include_directories(sluice::xsimd SYSTEM INTERFACE ${_sluice_dirs})
    endif()
  endforeach()
  unset(_sluice_xsimd_dirs)
  unset(_sluice_eigen_dirs)
endif()

find_package(nlohmann_json 3.9 CONFIG QUIET)
find_package(TBB CONFIG QUIET)
get_property(_sluice_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if("CXX" IN_LIST _sluice_languages)
  find_package(OpenMP COMPONENTS CXX QUIET)
  find_package(Threads QUIET)
endif()
unset(_sluice_languages)
foreach(_sluice_pair "IO:nlohmann_json::nlohmann_json" "THREADS:Threads::Threads" "OPENMP:OpenMP::OpenMP_CXX"
        "TBB:TBB::tbb")
  string(REGEX MATCH "^([A-Z]+):(.*)$" _sluice_pair "${_sluice_pair}")
  if(TARGET ${CMAKE_MATCH_2})
    set(SLUICE_HAVE_${CMAKE_MATCH_1} TRUE)
  else()
    set(SLUICE_HAVE_${CMAKE_MATCH_1} FALSE)
  endif()
endforeach()
unset(_sluice_pair)

# sluice::io adds JSON to sluice::sluice for the headers under sluice/io; the others add what an executor needs: threads the
# system's library for thread_pool. Each stands alone: link only what the program uses.
macro(sluice_add_conveniences)
  foreach(_sluice_pair "io:IO:nlohmann_json::nlohmann_json" "threads:THREADS:Threads::Threads"
          "openmp:OPENMP:OpenMP::OpenMP_CXX" "tbb:TBB:TBB::tbb")
    string(REGEX MATCH "^([a-z]+):([A-Z]+):(.*)$" _sluice_pair "${_sluice_pair}")
    if(SLUICE_HAVE_${CMAKE_MATCH_2} AND NOT TARGET sluice::${CMAKE_MATCH_1})
      add_library(sluice::${CMAKE_MATCH_1} INTERFACE IMPORTED ${SLUICE_IMPORTED_SCOPE})
      target_link_libraries(sluice::${CMAKE_MATCH_1} INTERFACE sluice::sluice ${CMAKE_MATCH_3})
    endif()
  endforeach()
  unset(_sluice_pair)
endmacro()
