# One compiler of the tests takes up to 100 MB for each of the sources that it compiles together, and Ninja starts two more than there are
# cores: on a small machine that swaps. So compile jobs get a pool as deep as the cores and the memory allow, and where there is more
# memory than that, more sources are compiled together: sluice_together of them, 20 to 60. sluice_compiler_heap is half of a job's memory.
cmake_host_system_information(RESULT sluice_cores QUERY NUMBER_OF_LOGICAL_CORES)
cmake_host_system_information(RESULT sluice_memory QUERY TOTAL_PHYSICAL_MEMORY) # MiB
math(EXPR sluice_jobs "${sluice_memory} / 2000")
if(sluice_jobs GREATER sluice_cores)
  set(sluice_jobs ${sluice_cores})
elseif(sluice_jobs LESS 1)
  set(sluice_jobs 1)
endif()
math(EXPR sluice_together "${sluice_memory} / ${sluice_jobs} / 100")
if(sluice_together LESS 20)
  set(sluice_together 20)
elseif(sluice_together GREATER 60)
  set(sluice_together 60) # no test program has many more
endif()
math(EXPR sluice_compiler_heap "${sluice_memory} * 512 / ${sluice_jobs}") # KiB
if(CMAKE_GENERATOR MATCHES "Ninja" AND NOT DEFINED CMAKE_JOB_POOL_COMPILE)
  set_property(GLOBAL APPEND PROPERTY JOB_POOLS sluice_compile=${sluice_jobs})
  set(CMAKE_JOB_POOL_COMPILE sluice_compile)
endif()
