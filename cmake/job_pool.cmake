# One compiler of the tests takes up to 2 GB, and Ninja starts two more than there are cores: on a small machine that
# swaps. So compile jobs get a pool as deep as the cores and the memory allow.
if(CMAKE_GENERATOR MATCHES "Ninja" AND NOT DEFINED CMAKE_JOB_POOL_COMPILE)
  cmake_host_system_information(RESULT sluice_cores QUERY NUMBER_OF_LOGICAL_CORES)
  cmake_host_system_information(RESULT sluice_memory QUERY TOTAL_PHYSICAL_MEMORY) # MiB
  math(EXPR sluice_jobs "${sluice_memory} / 2000")
  if(sluice_jobs GREATER sluice_cores)
    set(sluice_jobs ${sluice_cores})
  elseif(sluice_jobs LESS 1)
    set(sluice_jobs 1)
  endif()
  set_property(GLOBAL APPEND PROPERTY JOB_POOLS sluice_compile=${sluice_jobs})
  set(CMAKE_JOB_POOL_COMPILE sluice_compile)
endif()
