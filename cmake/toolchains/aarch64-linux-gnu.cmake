# 64-bit ARM with NEON, by Debian's cross compiler (g++-aarch64-linux-gnu); what it builds runs under qemu-aarch64 (qemu-user).
#
# The headers of Eigen, xsimd, Catch2 and nlohmann-json are the same on every architecture, so the build machine's own are used.
# The C and C++ library's are not: those come with the compiler, and /usr/include comes last in its order of search.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)

# Debian keeps xsimd's package file in a folder of the build machine's architecture.
file(GLOB sluice_xsimd_package /usr/lib/*/cmake/xsimd)
if(sluice_xsimd_package)
  list(GET sluice_xsimd_package 0 xsimd_DIR)
endif()

# Packages that bring a compiled library are of the build machine's architecture.
set(CMAKE_DISABLE_FIND_PACKAGE_TBB ON)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
