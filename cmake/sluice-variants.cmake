# sluice_add_variants(<target> ENTRY <name> TYPE <type> HEADER <header> SOURCES <source>... ISAS <isa>...
#                     [LINK_LIBRARIES <target>...])
#
# Compiles the sources once for every instruction set, all for one program, which chooses while it runs (see the header
# sluice/core/variant.hpp). <target> is a static library; link it. An ISA is one of sse2, sse4, avx2, avx512, avx512vnni (x86-64)
# or neon64 (64-bit ARM); those of another architecture are left out. Every variant defines one entry,
#
#   <return type> SLUICE_VARIANT_ENTRY(<name>)(...) { ... }
#
# outside any namespace, and <target> brings the header <name>_variants.hpp with the list <name>_variants, from the least to the
# most capable. <type> is the function type of the entry, which <header> declares. SLUICE_VARIANT is defined to the ISA.
#
# What is guaranteed. A variant's objects are joined into one, and every symbol that this one defines becomes local to it, except
# the entry and the descriptions of types. So no inline function or template, whether of sluice, Eigen, the standard library
# or the sources' own, is shared with another variant or with the rest of the program: the linker cannot give AVX-512 code to
# the part that runs on an old processor. Static objects of inline functions and templates exist once a variant.
# Exceptions and dynamic_cast work across the border. The build stops if anything else stays visible, if the entry is missing,
# if flags from elsewhere change a variant's instruction set, or if (in an optimised build) the sources hold static objects with
# constructors, which would run the variant's instructions before anyone has chosen.
#
# Needs an ELF system, GCC or Clang, and GNU ld 2.29 or newer with objcopy (binutils). Link-time optimisation is off for variants: it
# would merge what is kept apart. One build configuration a build tree.

set(SLUICE_VARIANTS_DIR ${CMAKE_CURRENT_LIST_DIR} CACHE INTERNAL "Where sluice's script for variants is")

# Finds GNU ld and objcopy. <result>: a reason why variants cannot be built here, or nothing.
function(sluice_find_variant_tools result)
  set(${result} "" PARENT_SCOPE)
  if(NOT CMAKE_EXECUTABLE_FORMAT STREQUAL "ELF" OR NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    set(${result} "they need GCC or Clang on a system with ELF objects" PARENT_SCOPE)
    return()
  endif()
  if(NOT SLUICE_VARIANT_LINKER)
    find_program(SLUICE_LD_BFD NAMES ld.bfd)
    mark_as_advanced(SLUICE_LD_BFD)
    set(candidates ${CMAKE_LINKER})
    if(NOT CMAKE_CROSSCOMPILING AND SLUICE_LD_BFD)
      list(APPEND candidates ${SLUICE_LD_BFD})
    endif()
    foreach(candidate IN LISTS candidates)
      execute_process(COMMAND ${candidate} --help OUTPUT_VARIABLE help ERROR_QUIET)
      if(help MATCHES "--force-group-allocation")
        set(SLUICE_VARIANT_LINKER ${candidate} CACHE INTERNAL "Joins the objects of a variant")
        break()
      endif()
    endforeach()
  endif()
  if(NOT SLUICE_VARIANT_LINKER OR NOT CMAKE_OBJCOPY OR NOT CMAKE_NM OR NOT CMAKE_OBJDUMP)
    set(${result} "they need GNU ld 2.29 or newer, objcopy, objdump and nm (binutils)" PARENT_SCOPE)
  endif()
endfunction()

function(sluice_add_variants target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "ENTRY;TYPE;HEADER" "SOURCES;ISAS;LINK_LIBRARIES")
  foreach(needed ENTRY TYPE HEADER SOURCES ISAS)
    if(NOT arg_${needed})
      message(FATAL_ERROR "sluice_add_variants(${target}): ${needed} is missing")
    endif()
  endforeach()
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "sluice_add_variants(${target}): unknown ${arg_UNPARSED_ARGUMENTS}")
  endif()
  sluice_find_variant_tools(reason)
  if(reason)
    message(FATAL_ERROR "sluice_add_variants(${target}): variants cannot be built: ${reason}")
  endif()

  # Name, name in sluice's symbols, flags; from the least to the most capable. cpu_runs() asks for exactly these features.
  set(avx512 "-march=x86-64 -mavx2 -mfma -mavx512f -mavx512cd -mavx512vl -mavx512bw -mavx512dq")
  set(x86_64 sse2 sse4 avx2 avx512 avx512vnni)
  set(x86_64_names sse2 sse4_2 avx2_fma avx512bw avx512vnni)
  set(x86_64_flags "-march=x86-64" "-march=x86-64 -msse4.2 -mpopcnt" "-march=x86-64 -mavx2 -mfma" "${avx512}" "${avx512} -mavx512vnni")
  set(arm64 neon64)
  set(arm64_names neon64)
  set(arm64_flags "-march=armv8-a")
  foreach(isa IN LISTS arg_ISAS)
    if(NOT isa IN_LIST x86_64 AND NOT isa IN_LIST arm64)
      message(FATAL_ERROR "sluice_add_variants(${target}): unknown instruction set ${isa}; known are ${x86_64} ${arm64}")
    endif()
  endforeach()
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(family x86_64)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    set(family arm64)
  else()
    message(FATAL_ERROR "sluice_add_variants(${target}): no instruction sets are known for ${CMAKE_SYSTEM_PROCESSOR}")
  endif()

  # Without optimisation even Eigen's empty static objects have a constructor, so nothing can be told then.
  string(TOUPPER "${CMAKE_BUILD_TYPE}" config)
  set(refuse_constructors OFF)
  if("${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${config}}" MATCHES "-O([123s]|fast)")
    set(refuse_constructors ON)
  endif()

  set(objects "")
  set(declarations "")
  set(rows "")
  foreach(isa flags name IN ZIP_LISTS ${family} ${family}_flags ${family}_names)
    if(NOT isa IN_LIST arg_ISAS)
      continue()
    endif()
    # The flags come last, after any -march among those of the libraries.
    add_library(${target}_${isa}_flags INTERFACE)
    target_compile_options(${target}_${isa}_flags INTERFACE "SHELL:${flags} -fno-lto$<$<CXX_COMPILER_ID:GNU>: -fno-gnu-unique>")
    add_library(${target}_${isa} OBJECT ${arg_SOURCES})
    target_link_libraries(${target}_${isa} PRIVATE sluice::sluice ${arg_LINK_LIBRARIES} ${target}_${isa}_flags)
    target_compile_definitions(${target}_${isa} PRIVATE SLUICE_VARIANT=${isa} SLUICE_VARIANT_ISA=${name})
    set_target_properties(${target}_${isa} PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)

    set(object ${CMAKE_CURRENT_BINARY_DIR}/${target}_variants/${arg_ENTRY}_${isa}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -DOBJECTS=$<JOIN:$<TARGET_OBJECTS:${target}_${isa}>,|> -DOUTPUT=${object} -DENTRY=${arg_ENTRY}_${isa}
              -DREFUSE_CONSTRUCTORS=${refuse_constructors} -DLINKER=${SLUICE_VARIANT_LINKER} -DOBJCOPY=${CMAKE_OBJCOPY} -DOBJDUMP=${CMAKE_OBJDUMP} -DNM=${CMAKE_NM}
              -P ${SLUICE_VARIANTS_DIR}/sluice-variant-object.cmake
      DEPENDS ${target}_${isa} $<TARGET_OBJECTS:${target}_${isa}> ${SLUICE_VARIANTS_DIR}/sluice-variant-object.cmake
      COMMENT "Variant ${isa} of ${target}"
      VERBATIM)
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
    list(APPEND objects ${object})
    string(APPEND declarations "extern ${arg_TYPE} ${arg_ENTRY}_${isa};\n")
    string(APPEND rows "\n    {\"${isa}\", &${arg_ENTRY}_${isa}},")
  endforeach()
  if(NOT objects)
    message(FATAL_ERROR "sluice_add_variants(${target}): none of ${arg_ISAS} is an instruction set of ${CMAKE_SYSTEM_PROCESSOR}")
  endif()

  set(folder ${CMAKE_CURRENT_BINARY_DIR}/${target}_variants)
  get_filename_component(header ${arg_HEADER} ABSOLUTE)
  file(CONFIGURE OUTPUT ${folder}/include/${arg_ENTRY}_variants.hpp @ONLY CONTENT
"/// The variants of ${arg_ENTRY}, from the least to the most capable. Written by sluice_add_variants.
#pragma once

#include <sluice/core/variant.hpp>

#include \"${header}\"

${declarations}
constexpr sluice::isa_variant<${arg_TYPE}> ${arg_ENTRY}_variants[] = {${rows}
};
")
  add_library(${target} STATIC ${objects})
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX)
  target_include_directories(${target} INTERFACE ${folder}/include)
  target_link_libraries(${target} INTERFACE sluice::sluice)
  foreach(library IN LISTS arg_LINK_LIBRARIES)
    target_link_libraries(${target} INTERFACE $<LINK_ONLY:${library}>)
  endforeach()
endfunction()
