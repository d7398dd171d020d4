# What keeps tests cheap to compile.
option(SLUICE_QUICK_TESTS "Compile without optimisation what neither measures speed nor tests kernels" OFF)

# sluice_quick_to_compile(<target>): the target is such a one. GCC then takes half the time or less.
function(sluice_quick_to_compile target)
  if(SLUICE_QUICK_TESTS AND NOT MSVC)
    target_compile_options(${target} PRIVATE -O0)
  endif()
endfunction()

# sluice_slow_to_run(<sources>...): those among them named *_checks.cpp, which are compiled once and run for many, are optimised a little.
function(sluice_slow_to_run)
  if(SLUICE_QUICK_TESTS AND NOT MSVC)
    list(FILTER ARGN INCLUDE REGEX "_checks\\.cpp$")
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -O1 SKIP_PRECOMPILE_HEADERS ON)
  endif()
endfunction()

# sluice_precompiled(<target> <headers>...): an object library of nothing, whose headers others reuse precompiled; they need its flags.
function(sluice_precompiled target)
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${target}.cpp CONTENT "")
  add_library(${target} OBJECT ${CMAKE_CURRENT_BINARY_DIR}/${target}.cpp)
  target_link_libraries(${target} PRIVATE sluice_test_flags)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_precompile_headers(${target} PRIVATE ${ARGN})
endfunction()
