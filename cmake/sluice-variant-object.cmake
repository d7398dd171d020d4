# Joins the objects of one variant into one whose only visible symbols are its entry and descriptions of types; see
# sluice-variants.cmake, which calls this.
# cmake -DOBJECTS=a.o|b.o -DOUTPUT=c.o -DENTRY=name -DREFUSE_CONSTRUCTORS=ON|OFF -DLINKER=ld -DOBJCOPY=... -DOBJDUMP=... -DNM=...
#       -P sluice-variant-object.cmake
cmake_minimum_required(VERSION 3.21)
string(REPLACE "|" ";" OBJECTS "${OBJECTS}")
get_filename_component(folder ${OUTPUT} DIRECTORY)
file(MAKE_DIRECTORY ${folder})
file(REMOVE ${OUTPUT})

function(run variable)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE error)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " line)
    message(FATAL_ERROR "failed (${result}): ${line}\n${error}")
  endif()
  set(${variable} "${output}" PARENT_SCOPE)
endfunction()

# Groups go: the linker keeps one of several groups of a name even if the name is local in each. -d gives common symbols a place.
run(ignored ${LINKER} -r -d --force-group-allocation -o ${OUTPUT}.joined ${OBJECTS})

# Constructors of static objects, unless sanitizers or coverage put theirs in.
run(sections ${OBJDUMP} -h ${OUTPUT}.joined)
run(needed ${NM} --undefined-only ${OUTPUT}.joined)
if(REFUSE_CONSTRUCTORS AND NOT needed MATCHES " __(asan|tsan|msan|ubsan|gcov|llvm_gcov|llvm_profile|sanitizer)_" AND sections MATCHES " [.](init_array|ctors) ")
  message(FATAL_ERROR "${ENTRY}: the sources hold static objects with constructors (perhaps <iostream>, or Eigen's constants where nothing is optimised). They would run this variant's "
    "instructions when the program starts, on any processor. Make them local to functions.")
endif()

# Descriptions of types (_ZTI, _ZTS) are data, alike in every variant. One of each in the program lets exceptions be caught
# outside by comparing addresses. .llvm_addrsig numbers symbols that have other numbers now.
string(LENGTH ${ENTRY} length)
set(mangled _Z${length}${ENTRY}) # followed by its parameters
run(ignored ${OBJCOPY} --wildcard --keep-global-symbol=${mangled}* --keep-global-symbol=${ENTRY} --keep-global-symbol=_ZTI* --keep-global-symbol=_ZTS*
  --remove-section=.llvm_addrsig ${OUTPUT}.joined ${OUTPUT}.local)

run(symbols ${NM} --defined-only --extern-only --format=posix ${OUTPUT}.local)
string(REPLACE "\n" ";" symbols "${symbols}")
set(has_entry FALSE)
foreach(symbol IN LISTS symbols)
  string(REGEX REPLACE " .*" "" name "${symbol}")
  if(name STREQUAL ENTRY OR name MATCHES "^${mangled}")
    set(has_entry TRUE)
  elseif(name AND NOT name MATCHES "^_ZT[IS]")
    message(FATAL_ERROR "${ENTRY}: ${name} is still visible")
  endif()
endforeach()
if(NOT has_entry)
  message(FATAL_ERROR "no source defines ${ENTRY}: write SLUICE_VARIANT_ENTRY(name) for its name, outside any namespace, after #include <sluice/core/variant.hpp>")
endif()
file(REMOVE ${OUTPUT}.joined)
file(RENAME ${OUTPUT}.local ${OUTPUT})
