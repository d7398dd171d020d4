# Compiles a source and makes a variant of it, which has to fail. Takes the arguments of sluice-variant-object.cmake, and SCRIPT.
cmake_minimum_required(VERSION 3.21)
execute_process(COMMAND ${COMPILER} ${FLAGS} -DSLUICE_VARIANT=sse2 -c ${SOURCE} -o ${OBJECT} RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} does not compile")
endif()
set(OBJECTS ${OBJECT})
set(OUTPUT ${OBJECT}.variant)
include(${SCRIPT})
