# sluice_warnings(<target>): the warnings that sluice's own tests, examples and benches are built with. Never put on sluice::sluice:
# a user's flags are the user's.
function(sluice_warnings target)
  if(MSVC)
    target_compile_options(${target} INTERFACE /W4 $<$<BOOL:${SLUICE_WERROR}>:/WX>)
    return()
  endif()
  # Compiled together, a source sees its neighbours' names, and what it declares shadows them.
  target_compile_options(${target} INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wno-sign-conversion
                                             $<$<NOT:$<BOOL:$<TARGET_PROPERTY:UNITY_BUILD>>>:-Wshadow>
                                             $<$<BOOL:${SLUICE_WERROR}>:-Werror>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC's own AVX-512 intrinsics draw these, wherever they are inlined (GCC bug 105593).
    target_compile_options(${target} INTERFACE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
endfunction()
