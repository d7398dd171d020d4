# sluice_compiler_flags_file: a response file with the language version and include directories that a user of sluice gets,
# for tests that call the compiler by hand. The target is never built; it only collects what sluice::sluice asks for.
add_library(sluice_flags OBJECT EXCLUDE_FROM_ALL main.cpp)
target_link_libraries(sluice_flags PRIVATE sluice::sluice)
if(TARGET sluice::io)
  target_link_libraries(sluice_flags PRIVATE sluice::io)
endif()

set(sluice_compiler_flags_file ${CMAKE_CURRENT_BINARY_DIR}/sluice_flags.rsp)
# The compiler's own directories are left out: naming /usr/include would break its order of search.
list(JOIN CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES "|" implicit)
string(REGEX REPLACE "[.+]" "[\\0]" implicit "${implicit}")
set(ours ${PROJECT_SOURCE_DIR}/include)
string(REGEX REPLACE "[.+]" "[\\0]" ours_pattern "${ours}")
set(others "$<FILTER:$<TARGET_PROPERTY:sluice_flags,INCLUDE_DIRECTORIES>,EXCLUDE,^(${implicit}|${ours_pattern})$>")
set(others "$<REMOVE_DUPLICATES:${others}>")
file(GENERATE OUTPUT ${sluice_compiler_flags_file} CONTENT
  "-std=c++20\n\"-I${ours}\"\n$<$<BOOL:${others}>:\"-isystem$<JOIN:${others},\"\n\"-isystem>\"\n>")
