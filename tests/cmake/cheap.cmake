# What keeps tests cheap to compile.
set(SLUICE_QUICK_TESTS "" CACHE STRING "How to compile what neither measures speed nor tests kernels, for example -O0")

set(SLUICE_HALF_OPTIMISED_TESTS "" CACHE STRING "Kinds of those that are compiled with -O1 all the same")

# sluice_quick_to_compile(<target> [<kind>]): the target is such a one. With -O0 GCC takes half the time or less.
function(sluice_quick_to_compile target)
  if(ARGC GREATER 1 AND ARGV1 IN_LIST SLUICE_HALF_OPTIMISED_TESTS)
    target_compile_options(${target} PRIVATE -O1)
  else()
    target_compile_options(${target} PRIVATE ${SLUICE_QUICK_TESTS})
  endif()
endfunction()

# sluice_compile_together(<target>): as the sources of tests are, for targets of other folders.
function(sluice_compile_together target)
  if(SLUICE_TESTS_TOGETHER)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${SLUICE_TESTS_TOGETHER})
  endif()
endfunction()

# sluice_quick_program(<target>): a program that tests run and whose speed nobody looks at.
function(sluice_quick_program target)
  sluice_quick_to_compile(${target})
  sluice_quick_to_run(${target})
  sluice_compile_together(${target})
endfunction()

# sluice_quick_to_run(<target>): of the functions that tests/optimised.cpp has too, the target takes the optimised ones. Its object comes
# first in the link, and so it must be the first one of the target's object libraries.
function(sluice_quick_to_run target)
  if(TARGET sluice_test_optimised)
    target_link_libraries(${target} PRIVATE sluice_test_optimised)
  endif()
endfunction()

# sluice_precompiled(<target> <flags> <headers>...): an object library of nothing that links <flags>, whose headers others reuse
# precompiled; they need its flags.
function(sluice_precompiled target flags)
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${target}.cpp CONTENT "")
  add_library(${target} OBJECT ${CMAKE_CURRENT_BINARY_DIR}/${target}.cpp)
  target_link_libraries(${target} PRIVATE ${flags})
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_precompile_headers(${target} PRIVATE ${ARGN})
endfunction()

# sluice_precompiled_for(<result> <compiler> <headers>...): a header that includes these, with a precompiled form beside it for tests that
# call a compiler by hand with -include. <result> is its path and <result>_target what builds the form, once for all who ask.
function(sluice_precompiled_for result compiler)
  get_filename_component(name ${compiler} NAME)
  string(MAKE_C_IDENTIFIER "sluice_precompiled_${name}_${ARGN}" target)
  set(prefix ${PROJECT_BINARY_DIR}/tests/precompiled/${target}.hpp)
  if(NOT TARGET ${target})
    list(TRANSFORM ARGN REPLACE "(.+)" "#include <\\1>\n")
    string(JOIN "" content ${ARGN})
    file(CONFIGURE OUTPUT ${prefix} CONTENT "${content}")
    set(templates "")
    if(compiler MATCHES "clang")
      set(templates -fpch-instantiate-templates) # once, not by each source that reads it
    endif()
    add_custom_command(OUTPUT ${prefix}.gch
      COMMAND ${compiler} @${sluice_compiler_flags_file} ${templates} -x c++-header ${prefix} -o ${prefix}.gch DEPENDS ${prefix} VERBATIM)
    add_custom_target(${target} ALL DEPENDS ${prefix}.gch)
  endif()
  set(${result} ${prefix} PARENT_SCOPE)
  set(${result}_target ${target} PARENT_SCOPE)
endfunction()
